#pragma once
#pragma clang system_header

#import <Foundation/NSObject.h>

NS_ASSUME_NONNULL_BEGIN

// What @autoreleasepool compiles to with GCC's runtime.
@interface NSAutoreleasePool : NSObject
- (void)addObject:(id)anObject;
- (void)drain;
@end

NS_ASSUME_NONNULL_END
