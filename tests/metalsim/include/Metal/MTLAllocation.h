#pragma once
#pragma clang system_header

#import <Metal/MTLDefines.h>

NS_ASSUME_NONNULL_BEGIN

// What may be made resident: resources and heaps.
API_AVAILABLE(macos(15.0), ios(18.0))
@protocol MTLAllocation <NSObject>
@property(readonly) NSUInteger allocatedSize;
@end

NS_ASSUME_NONNULL_END
