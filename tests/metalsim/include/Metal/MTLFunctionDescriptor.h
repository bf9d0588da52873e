#pragma once
#pragma clang system_header

#import <Metal/MTLBinaryArchive.h>
#import <Metal/MTLFunctionConstantValues.h>

NS_ASSUME_NONNULL_BEGIN

typedef NS_OPTIONS(NSUInteger, MTLFunctionOptions) {
    MTLFunctionOptionNone = 0,
    MTLFunctionOptionCompileToBinary = 1 << 0,
    MTLFunctionOptionFailOnBinaryArchiveMiss = 1 << 2,
};

@interface MTLFunctionDescriptor : NSObject <NSCopying>
+ (MTLFunctionDescriptor*)functionDescriptor;
@property(nullable, nonatomic, copy) NSString* name;
@property(nullable, nonatomic, copy) NSString* specializedName;
@property(nullable, nonatomic, copy) MTLFunctionConstantValues* constantValues;
@property(nonatomic) MTLFunctionOptions options;
@property(readwrite, nullable, nonatomic, copy) NSArray<id<MTLBinaryArchive>>* binaryArchives;
@end

NS_ASSUME_NONNULL_END
