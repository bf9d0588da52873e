#pragma once
#pragma clang system_header

#import <Metal/MTLResource.h>

NS_ASSUME_NONNULL_BEGIN

@protocol MTLDevice;

typedef NSString* MTLCommonCounter;
typedef NSString* MTLCommonCounterSet;

MTL_EXTERN NSErrorDomain const MTLCounterErrorDomain;
MTL_EXTERN MTLCommonCounter const MTLCommonCounterTimestamp;
MTL_EXTERN MTLCommonCounterSet const MTLCommonCounterSetTimestamp;

typedef struct {
    uint64_t timestamp;
} MTLCounterResultTimestamp;

#define MTLCounterErrorValue ((NSUInteger)~0ULL)
#define MTLCounterDontSample ((NSUInteger) - 1)

typedef NS_ENUM(NSInteger, MTLCounterSampleBufferError) {
    MTLCounterSampleBufferErrorOutOfMemory = 0,
    MTLCounterSampleBufferErrorInvalid = 1,
    MTLCounterSampleBufferErrorInternal = 2,
};

@protocol MTLCounter <NSObject>
@property(readonly, copy) NSString* name;
@end

@protocol MTLCounterSet <NSObject>
@property(readonly, copy) NSString* name;
@property(readonly, copy) NSArray<id<MTLCounter>>* counters;
@end

@interface MTLCounterSampleBufferDescriptor : NSObject <NSCopying>
@property(readwrite, retain, nullable) id<MTLCounterSet> counterSet;
@property(readwrite, copy) NSString* label;
@property(readwrite, nonatomic) MTLStorageMode storageMode;
@property(readwrite, nonatomic) NSUInteger sampleCount;
@end

@protocol MTLCounterSampleBuffer <NSObject>
@property(readonly) id<MTLDevice> device;
@property(readonly) NSString* label;
@property(readonly) NSUInteger sampleCount;
- (nullable NSData*)resolveCounterRange:(NSRange)range;
@end

NS_ASSUME_NONNULL_END
