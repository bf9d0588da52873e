#pragma once
#pragma clang system_header

#include <os/log.h>
#include <stdbool.h>
#include <stdint.h>

typedef uint64_t os_signpost_id_t;
typedef uint8_t os_signpost_type_t;

#define OS_SIGNPOST_ID_NULL ((os_signpost_id_t)0)
#define OS_SIGNPOST_ID_INVALID ((os_signpost_id_t)~0)
#define OS_SIGNPOST_ID_EXCLUSIVE ((os_signpost_id_t)0xEEEEB0B5B2B2EEEE)

enum {
    OS_SIGNPOST_EVENT = 0x00,
    OS_SIGNPOST_INTERVAL_BEGIN = 0x01,
    OS_SIGNPOST_INTERVAL_END = 0x02,
};

#define OS_LOG_CATEGORY_POINTS_OF_INTEREST "PointsOfInterest"
#define OS_LOG_CATEGORY_DYNAMIC_TRACING "DynamicTracing"
#define OS_LOG_CATEGORY_DYNAMIC_STACK_TRACING "DynamicStackTracing"

#ifdef __cplusplus
extern "C" {
#endif

os_signpost_id_t os_signpost_id_generate(os_log_t log);
os_signpost_id_t os_signpost_id_make_with_pointer(os_log_t log, const void* pointer);
bool os_signpost_enabled(os_log_t log);

// What the macros below call. The format is checked as Apple's compiler checks it.
void metalsim_signpost(os_log_t log, os_signpost_type_t type, os_signpost_id_t id, const char* name, const char* format,
                       ...) __attribute__((format(os_log, 5, 6)));

#ifdef __cplusplus
}
#endif

// Names and formats are string literals, as Apple's macros demand.
#define os_signpost_event_emit(log, id, name, ...) \
    metalsim_signpost(log, OS_SIGNPOST_EVENT, id, "" name "", "" __VA_ARGS__)
#define os_signpost_interval_begin(log, id, name, ...) \
    metalsim_signpost(log, OS_SIGNPOST_INTERVAL_BEGIN, id, "" name "", "" __VA_ARGS__)
#define os_signpost_interval_end(log, id, name, ...) \
    metalsim_signpost(log, OS_SIGNPOST_INTERVAL_END, id, "" name "", "" __VA_ARGS__)
