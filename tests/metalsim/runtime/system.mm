#include <dispatch/dispatch.h>
#include <dlfcn.h>
#include <os/signpost.h>
#include <unwind.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <thread>

#include "core/signals.h"
#include "runtime/object.h"
#include "runtime/state.h"

// C++ exceptions, blocks, dispatch queues and data, signposts.

// Clang unwinds all Objective-C++ for GCC's runtime by libobjc's personality function, which knows no C++ exceptions
// and passes their handlers by. There are no others here, so that C++'s own stands in front of it.
extern "C" _Unwind_Reason_Code __gxx_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class kind,
                                                    _Unwind_Exception* exception, _Unwind_Context* context);
extern "C" __attribute__((visibility("hidden"))) _Unwind_Reason_Code
__gnu_objc_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class kind,
                          _Unwind_Exception* exception, _Unwind_Context* context) {
    return __gxx_personality_v0(version, actions, kind, exception, context);
}

extern "C" void* _Block_copy(const void* block);
extern "C" void _Block_release(const void* block);

namespace {

constexpr int kBlockFieldIsObject =
    3;  // Block_private.h: an Objective-C object; its value is part of blocks' binary interface

// The blocks runtime of Debian keeps captured objects without retaining them, as it knows no Objective-C runtime. These
// stand in front of its functions, and retain.
using Assign = void (*)(void*, const void*, int);
using Dispose = void (*)(const void*, int);

template <class T>
T next_symbol(const char* name) {
    return reinterpret_cast<T>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" __attribute__((visibility("hidden"))) void _Block_object_assign(void* to, const void* object, int flags) {
    static const auto next = next_symbol<Assign>("_Block_object_assign");
    if (flags == kBlockFieldIsObject) {
        id retained = [static_cast<id>(const_cast<void*>(object)) retain];
        std::memcpy(to, &retained, sizeof retained);
    } else {
        next(to, object, flags);
    }
}

extern "C" __attribute__((visibility("hidden"))) void _Block_object_dispose(const void* object, int flags) {
    static const auto next = next_symbol<Dispose>("_Block_object_dispose");
    if (flags == kBlockFieldIsObject) {
        [static_cast<id>(const_cast<void*>(object)) release];
    } else {
        next(object, flags);
    }
}

namespace metalsim {
void* copy_block(const void* block) {
    return _Block_copy(block);
}
void release_block(const void* block) {
    _Block_release(block);
}
}  // namespace metalsim

// ---- dispatch ----

namespace {

struct DispatchObject {
    std::atomic<int64_t> references{1};
    virtual ~DispatchObject() = default;
};

void retain(const void* object) {
    static_cast<DispatchObject*>(const_cast<void*>(object))->references.fetch_add(1);
}

void release(const void* object) {
    auto* base = static_cast<DispatchObject*>(const_cast<void*>(object));
    if (base->references.fetch_sub(1) == 1) delete base;
}

}  // namespace

struct dispatch_data_s : DispatchObject {
    std::string copy;
    const void* bytes = nullptr;
    size_t size = 0;
    metalsim::BlockRef<dispatch_block_t> destructor;
    ~dispatch_data_s() override {
        if (destructor.get() != nullptr) destructor.get()();
    }
};

// A thread that runs blocks in turn. It ends when the last reference is gone and no block waits.
struct dispatch_queue_s : DispatchObject {
    struct Work {
        std::mutex mutex;
        std::condition_variable change;
        std::deque<metalsim::BlockRef<dispatch_block_t>> blocks;
        bool closed = false;
    };
    std::shared_ptr<Work> work = std::make_shared<Work>();

    dispatch_queue_s() {
        const metallic::SignalsBlocked blocked;
        std::thread([work = work] { run(*work); }).detach();
    }
    ~dispatch_queue_s() override {
        const std::lock_guard lock(work->mutex);
        work->closed = true;
        work->change.notify_all();
    }
    static void run(Work& work) {
        for (;;) {
            metalsim::BlockRef<dispatch_block_t> block;
            {
                std::unique_lock lock(work.mutex);
                work.change.wait(lock, [&] { return work.closed || !work.blocks.empty(); });
                if (work.blocks.empty()) return;
                block = std::move(work.blocks.front());
                work.blocks.pop_front();
            }
            @autoreleasepool {
                block.get()();
                block = {};
            }
        }
    }
};

dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t queue,
                                     dispatch_block_t destructor) {
    (void)queue;
    auto* data = new dispatch_data_s;
    data->size = size;
    if (destructor == nullptr) {
        data->copy.assign(static_cast<const char*>(buffer), size);
        data->bytes = data->copy.data();
    } else {
        data->bytes = buffer;
        data->destructor = metalsim::BlockRef<dispatch_block_t>(destructor);
    }
    return data;
}

size_t dispatch_data_get_size(dispatch_data_t data) {
    return data->size;
}

dispatch_queue_t dispatch_queue_create(const char*, const void*) {
    return new dispatch_queue_s;
}

void dispatch_async(dispatch_queue_t queue, dispatch_block_t block) {
    const std::lock_guard lock(queue->work->mutex);
    queue->work->blocks.emplace_back(block);
    queue->work->change.notify_one();
}

void dispatch_retain(const void* object) {
    retain(object);
}
void dispatch_release(const void* object) {
    release(object);
}

// ---- signposts ----

struct os_log_s {
    std::string name;
};

os_log_t os_log_create(const char* subsystem, const char* category) {
    static std::mutex* const mutex = new std::mutex;
    static auto* const logs = new std::map<std::string, os_log_s>;
    const std::string name = std::string(subsystem) + ":" + category;
    const std::lock_guard lock(*mutex);
    return &logs->try_emplace(name, os_log_s{name}).first->second;
}

os_signpost_id_t os_signpost_id_generate(os_log_t) {
    static std::atomic<os_signpost_id_t> next{1};
    return next++;
}

os_signpost_id_t os_signpost_id_make_with_pointer(os_log_t, const void* pointer) {
    return reinterpret_cast<os_signpost_id_t>(pointer);
}

bool os_signpost_enabled(os_log_t log) {
    return log != nullptr;
}

void metalsim_signpost(os_log_t, os_signpost_type_t type, os_signpost_id_t, const char*, const char*, ...) {
    if (type != OS_SIGNPOST_INTERVAL_BEGIN) metalsim::count(metalsim::counters().signposts);
}
