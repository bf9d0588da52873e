#pragma once

#import <Metal/Metal.h>

#include <array>
#include <condition_variable>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/events.h"
#include "runtime/library.h"
#include "runtime/memory.h"
#include "runtime/object.h"
#include "runtime/state.h"

// What a command buffer records, and what becomes of it. Execution reads it alone and touches no Metal object but those
// that the command buffer keeps.
namespace metalsim {

struct QueueCore;

constexpr size_t kMostResidencySets = 32;  // of a queue, and of a command buffer: Apple's documentation of both

// A buffer at an index of the argument table.
struct Bound {
    uint32_t index = 0;
    std::byte* at = nullptr;
    uint64_t bytes = 0;  // to the end of the buffer
    Memory::Id region = 0;
};

struct Dispatch {
    const PipelineData* pipeline = nullptr;
    uint32_t first_bound = 0, bound_count = 0;
    uint32_t first_length = 0, length_count = 0;  // of threadgroup memory
    Size3 threads_per_threadgroup, threadgroups, threads{0, 0, 0};
    const std::byte* indirect = nullptr;  // threadgroups are read from here
    uint32_t used_count = 0;              // of the encoder's used regions, so far
    uint32_t scope = 0;
};

struct Blit {
    enum class Kind : uint8_t { copy, fill, resolve } kind = Kind::copy;
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    uint64_t bytes = 0;
    uint8_t value = 0;
    std::shared_ptr<std::vector<std::atomic<uint64_t>>> samples;
    NSRange range{};
    uint32_t scope = 0;
};

struct Command {
    enum class Kind : uint8_t {
        begin_encoder,  // index: of encoders
        end_encoder,
        dispatch,  // index: of dispatches
        blit,      // index: of blits
        barrier,
        signal,  // index: of events
        wait,
    } kind = Kind::barrier;
    uint32_t index = 0;
};

struct EventStep {
    std::shared_ptr<EventValue> event;
    uint64_t value = 0;
};

struct SampleStep {
    std::shared_ptr<std::vector<std::atomic<uint64_t>>> samples;
    NSUInteger start = MTLCounterDontSample, end = MTLCounterDontSample;
};

struct EncoderRecord {
    std::string label;
    std::vector<std::string> signposts;
    bool serial = true;
    bool ended = false;
    bool writes_tracked = false;  // resources that Metal itself keeps in order
    struct Used {
        Memory::Id region;
        bool writes;
    };
    std::vector<Used> used;  // by useResource and useHeap, in the order of the calls
    std::vector<std::shared_ptr<FenceValue>> waits, updates;
    std::vector<SampleStep> samples;
    MTLCommandEncoderErrorState state = MTLCommandEncoderErrorStatePending;
};

struct Failure {
    MTLCommandBufferError code = MTLCommandBufferErrorInternal;
    std::string text;
    std::optional<uint32_t> encoder;
};

using Handler = BlockRef<MTLCommandBufferHandler>;

struct CommandBufferState : Counted {
    id<MTLDevice> device = nil;
    DeviceState* owner = nullptr;
    Ref<id<MTLCommandQueue>> queue;
    std::shared_ptr<QueueCore> core;
    bool retains = true;
    MTLCommandBufferErrorOption options = MTLCommandBufferErrorOptionNone;
    Ref<NSString*> label;
    uint64_t serial = 0;
    bool has_slot = false;

    // What was recorded.
    std::vector<Command> commands;
    std::vector<Dispatch> dispatches;
    std::vector<Bound> bound;
    std::vector<std::pair<uint32_t, uint32_t>> lengths;  // index, bytes
    std::vector<Blit> blits;
    std::vector<EventStep> events;
    std::deque<EncoderRecord> encoders;
    std::vector<std::string> scopes;
    std::vector<std::string> groups;  // debug groups of the command buffer
    bool encoding = false;            // an encoder is open
    std::vector<std::shared_ptr<const Resident>> resident;

    // What is kept until completion: allocations by their headers' counts, and what cannot be bound twice.
    std::vector<id> kept;
    std::vector<std::shared_ptr<Usage>> borrowed;  // with unretained references
    std::vector<std::string> borrowed_names;
    std::vector<std::shared_ptr<const PipelineData>> pipelines;
    // Arguments by value.
    struct Block {
        std::unique_ptr<std::byte[]> bytes;
        size_t size = 0, used = 0;
    };
    std::vector<Block> arena;
    std::vector<Memory::Id> arena_regions;

    std::mutex mutex;
    std::condition_variable change;
    MTLCommandBufferStatus status = MTLCommandBufferStatusNotEnqueued;
    bool scheduled_handlers_done = false, completed_handlers_done = false;
    std::vector<Handler> on_scheduled, on_completed;
    std::optional<Failure> failure;
    Ref<NSError*> error;
    double kernel_start = 0, kernel_end = 0, gpu_start = 0, gpu_end = 0;
    bool observed = false;      // the host has seen it complete
    uint64_t observations = 0;  // what the host had seen of the device when it committed this

    ~CommandBufferState();
    void fail(Failure what);  // the first failure counts
    bool failed();
    // A misuse of the API: reported, and this command buffer fails.
    void misuse(Problem problem, std::string_view kernel, std::string_view scope, std::string detail,
                std::optional<uint32_t> encoder = std::nullopt);
    // Keeps an allocation alive until completion, or at least knows of its end.
    void keep(id object, AllocationState& of);
    std::byte* copy_arguments(const void* from, size_t bytes, Memory::Id* region);
    void let_go();          // of everything that is kept
    void see_completion();  // the host has; with the mutex held
};

// The thread of a queue, and the thread that calls its handlers. Outlives the Metal object while work is under way.
struct QueueCore {
    std::mutex mutex;
    std::condition_variable change;
    std::deque<id> order;                      // command buffers as they were enqueued; retained
    std::deque<std::pair<id, bool>> handlers;  // command buffer, whether it completed; retained
    NSUInteger limit = 64, taken = 0;
    bool closed = false, started = false, worker_ended = false;
};

struct QueueState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<QueueCore> core = std::make_shared<QueueCore>();
    Ref<NSString*> label;
    std::mutex mutex;
    std::vector<Ref<id<MTLResidencySet>>> sets;
    ~QueueState();
};

// Runs a committed command buffer; its failure, if any, is recorded in it.
void execute(CommandBufferState& commands);

id<MTLCommandQueue> make_queue(id<MTLDevice> device, NSUInteger limit);
id<MTLCommandBuffer> make_command_buffer(id<MTLCommandQueue> queue, bool retains, MTLCommandBufferErrorOption options);
// Appends to the queue's order, unless it is there already.
void enqueue(id command_buffer);
bool in_handler_of(id command_buffer);  // of its completion, on this thread
void wake(QueueCore& core);
void free_slot(CommandBufferState& commands);
// Joined by "/", without empty parts.
std::string join_scope(const std::vector<std::string>& before, std::string_view label,
                       const std::vector<std::string>& after);

id<MTLComputeCommandEncoder> make_compute_encoder(id<MTLCommandBuffer> buffer, MTLDispatchType type,
                                                  MTLComputePassDescriptor* pass);
id<MTLBlitCommandEncoder> make_blit_encoder(id<MTLCommandBuffer> buffer, MTLBlitPassDescriptor* pass);
// Opens an encoder's record; none if that is not allowed now.
std::optional<uint32_t> open_encoder(CommandBufferState& commands, bool serial, const std::vector<SampleStep>& samples);

}  // namespace metalsim
