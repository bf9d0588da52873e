#pragma once
#pragma clang system_header

#import <Foundation/NSString.h>

NS_ASSUME_NONNULL_BEGIN

// File URLs.
@interface NSURL : NSObject <NSCopying>
- (instancetype)initFileURLWithPath:(NSString*)path;
+ (NSURL*)fileURLWithPath:(NSString*)path;
@property(readonly) const char* fileSystemRepresentation NS_RETURNS_INNER_POINTER;
@end

NS_ASSUME_NONNULL_END
