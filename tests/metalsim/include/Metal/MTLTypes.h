#pragma once
#pragma clang system_header

#import <Metal/MTLDefines.h>

typedef struct {
    NSUInteger x, y, z;
} MTLOrigin;

MTL_INLINE MTLOrigin MTLOriginMake(NSUInteger x, NSUInteger y, NSUInteger z) {
    MTLOrigin origin = {x, y, z};
    return origin;
}

typedef struct {
    NSUInteger width, height, depth;
} MTLSize;

MTL_INLINE MTLSize MTLSizeMake(NSUInteger width, NSUInteger height, NSUInteger depth) {
    MTLSize size = {width, height, depth};
    return size;
}

typedef struct {
    NSUInteger size;
    NSUInteger align;
} MTLSizeAndAlign;

typedef struct MTLResourceID {
    uint64_t _impl;
} MTLResourceID;

typedef uint64_t MTLGPUAddress;
typedef uint64_t MTLTimestamp;
