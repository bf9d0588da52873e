#pragma once
#pragma clang system_header

#include <limits.h>
#include <stdarg.h>
#include <stdint.h>

#import <Availability.h>
#import <TargetConditionals.h>
#import <objc/objc.h>
// As in Apple's header.
#undef YES
#undef NO
#define YES __objc_yes
#define NO __objc_no
#ifdef __cplusplus
#undef nil
#undef Nil
#define nil nullptr
#define Nil nullptr
#endif

#ifdef __cplusplus
#define FOUNDATION_EXTERN extern "C"
#else
#define FOUNDATION_EXTERN extern
#endif
#define FOUNDATION_EXPORT FOUNDATION_EXTERN

#define NS_ENUM(type, name) \
    enum name : type name;  \
    enum name : type
// An enumeration whose values may be combined: in C++ its type is the integer, as in Apple's headers.
#ifdef __cplusplus
#define NS_OPTIONS(type, name) \
    type name;                 \
    enum : type
#else
#define NS_OPTIONS(type, name) NS_ENUM(type, name)
#endif

#define NS_ASSUME_NONNULL_BEGIN _Pragma("clang assume_nonnull begin")
#define NS_ASSUME_NONNULL_END _Pragma("clang assume_nonnull end")
#define NS_RETURNS_INNER_POINTER __attribute__((objc_returns_inner_pointer))
#define NS_RETURNS_RETAINED __attribute__((ns_returns_retained))
#define NS_DESIGNATED_INITIALIZER __attribute__((objc_designated_initializer))
#define NS_REQUIRES_NIL_TERMINATION __attribute__((sentinel(0, 1)))
#define NS_UNAVAILABLE __attribute__((unavailable))
#define NS_NOESCAPE __attribute__((noescape))
#define NS_SWIFT_NAME(...)
#define NS_STRING_ENUM
#define NS_TYPED_EXTENSIBLE_ENUM

typedef long NSInteger;
typedef unsigned long NSUInteger;
typedef double NSTimeInterval;
typedef unsigned short unichar;

#define NSIntegerMax LONG_MAX
#define NSIntegerMin LONG_MIN
#define NSUIntegerMax ULONG_MAX

typedef NS_ENUM(NSInteger, NSComparisonResult) {
    NSOrderedAscending = -1L,
    NSOrderedSame,
    NSOrderedDescending,
};

static const NSInteger NSNotFound = NSIntegerMax;

@class NSString;
FOUNDATION_EXPORT void NSLog(NSString* _Nonnull format, ...);
