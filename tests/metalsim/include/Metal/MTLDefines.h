#pragma once
#pragma clang system_header

#import <Foundation/Foundation.h>

#define MTL_EXPORT __attribute__((visibility("default")))
#ifdef __cplusplus
#define MTL_EXTERN extern "C" MTL_EXPORT
#else
#define MTL_EXTERN extern MTL_EXPORT
#endif
#define MTL_INLINE static inline

typedef double CFTimeInterval;
