#pragma once
#pragma clang system_header

// Availability attributes say nothing on Linux. Whether an API is there at run time is asked with __builtin_available,
// which here is answered by the simulated device's system version (DeviceModel::macos_major and macos_minor).
// `@available` cannot be redirected: Clang answers it with true on Linux.
#define API_AVAILABLE(...)
#define API_UNAVAILABLE(...)
#define API_DEPRECATED(...)
#define API_DEPRECATED_WITH_REPLACEMENT(...)

#ifdef __cplusplus
extern "C" bool metalsim_available(const char* versions);
#define __builtin_available(...) metalsim_available(#__VA_ARGS__)
#endif
