#pragma once
#pragma clang system_header

#include <stdint.h>

typedef struct os_log_s* os_log_t;

#ifdef __cplusplus
extern "C" {
#endif

// Logs live as long as the process; equal names give the same log.
os_log_t os_log_create(const char* subsystem, const char* category);

#ifdef __cplusplus
}
#endif
