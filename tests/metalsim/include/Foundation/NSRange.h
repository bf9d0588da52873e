#pragma once
#pragma clang system_header

#import <Foundation/NSObjCRuntime.h>

typedef struct _NSRange {
    NSUInteger location;
    NSUInteger length;
} NSRange;

static inline NSRange NSMakeRange(NSUInteger location, NSUInteger length) {
    NSRange range;
    range.location = location;
    range.length = length;
    return range;
}

static inline NSUInteger NSMaxRange(NSRange range) {
    return range.location + range.length;
}

static inline BOOL NSLocationInRange(NSUInteger location, NSRange range) {
    return location >= range.location && location - range.location < range.length;
}

static inline BOOL NSEqualRanges(NSRange left, NSRange right) {
    return left.location == right.location && left.length == right.length;
}
