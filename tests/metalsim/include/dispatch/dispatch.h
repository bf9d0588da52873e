#pragma once
#pragma clang system_header

// The part of libdispatch that Metal's methods name.
#include <stddef.h>

typedef struct dispatch_queue_s* dispatch_queue_t;
typedef struct dispatch_data_s* dispatch_data_t;
typedef void (^dispatch_block_t)(void);

#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t) nullptr)
#define DISPATCH_QUEUE_SERIAL nullptr

#ifdef __cplusplus
extern "C" {
#endif

// With the default destructor the bytes are copied; with a block they are used in place, and the block is called once
// they are no longer needed (here: on the thread that releases the last reference).
dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t queue,
                                     dispatch_block_t destructor);
size_t dispatch_data_get_size(dispatch_data_t data);

dispatch_queue_t dispatch_queue_create(const char* label, const void* attributes);
void dispatch_async(dispatch_queue_t queue, dispatch_block_t block);

// Of a queue or of data.
void dispatch_retain(const void* object);
void dispatch_release(const void* object);

#ifdef __cplusplus
}
#endif
