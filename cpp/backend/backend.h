#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/kv_layout.h"
#include "backend/precision.h"
#include "core/selection.h"
#include "program/planner.h"
#include "program/program.h"
#include "trace/events.h"

// The one seam between the engine and a device.
namespace metallic {

enum class Storage : uint8_t {
    shared,     // host and device see the same bytes
    exclusive,  // device only ("private" in Metal); host() is null
    mapped,     // a zero-copy view of host memory, usually of a mapped file; read-only
};

// What new memory shall hold.
enum class Contents : uint8_t {
    undefined,  // it is written before it is read; whoever asks for it saves a fill
    zero,
};

// What memory is for, as statistics count it.
enum class Tag : uint8_t { weights, kv, activations, staging };
inline constexpr int kTags = 4;

struct DeviceInfo {
    std::string backend;  // "cpu", "metal"
    std::string name;
    std::string detail;    // instruction set or GPU families
    bool is_host = false;  // it computes on the host's processor
    bool unified_memory = true;
    bool half_arithmetic = false;
    bool bfloat16_arithmetic = false;
    bool matrix_units = false;
    bool deterministic = false;       // a token's values do not depend on what else is in its batch
    bool selects_candidates = false;  // asking for candidates is quicker than asking for logits
    uint32_t threads = 1;
    uint64_t memory_bytes = 0;  // recommended working set
    uint64_t max_buffer_bytes = 0;
};

// What host memory is made of.
enum class HostMemory : uint8_t {
    any,      // the view may be a copy made at once
    mapping,  // a part of one mapping of whole pages, which `owner` keeps: the view need not be a copy
};

// Memory obtained from a backend. `address` is what kernels use: a host pointer on `cpu`, a GPU address on `metal`.
class Heap {
  public:
    virtual ~Heap() = default;
    virtual std::byte* host() const noexcept = 0;
    virtual uint64_t address() const noexcept = 0;
    virtual uint64_t bytes() const noexcept = 0;
    virtual Storage storage() const noexcept = 0;
    // Whether all bytes were zero when it was made, asked for or not.
    virtual bool made_zero() const noexcept = 0;
};

// A range of a heap. Borrowed: whoever made it keeps the heap alive.
struct BufferView {
    Heap* heap = nullptr;
    uint64_t offset = 0;
    uint64_t bytes = 0;

    std::byte* host() const noexcept { return heap->host() + offset; }
    uint64_t address() const noexcept { return heap->address() + offset; }
};

// Pages of one sequence in one cache group: pages[i] is the address of the page that holds tokens
// [(first_page + i) * kPageTokens, ...). Pages that left a window are not listed.
struct PageTableView {
    const uint64_t* pages = nullptr;  // multiples of kPageAlignment
    uint32_t first_page = 0;
    uint32_t count = 0;
};

// Consecutive tokens of one sequence: rows [first_row, first_row + length) of the batch, at positions
// [position, position + length).
struct Run {
    uint32_t first_row = 0;
    uint32_t length = 0;
    uint32_t position = 0;
    bool rope_extended = false;
};

// A ragged set of runs. `tables[r * groups + g]` belongs to run r and cache group g and covers all its tokens.
struct Batch {
    std::span<const int32_t> tokens;
    std::span<const Run> runs;
    std::span<const PageTableView> tables;
    std::span<const uint32_t> output_rows;  // ascending rows whose logits are wanted
    float* logits = nullptr;                // host memory [output_rows, vocabulary]
    // Where not empty, one per output row: candidates are wanted, and logits are not.
    std::span<const Selection> selections;
    Candidate* candidates = nullptr;  // host memory [output_rows, candidate_stride(selections)]
    // Called now and then while the batch runs, on the thread that submits or waits; true means stop: submit or wait
    // then throws Interrupted and the tokens of this batch are not in the cache as far as anybody may assume. Where
    // work that a device has begun cannot be stopped, the batch runs to its end first.
    std::function<bool()> interrupted;
};

struct Interrupted : std::exception {};

class Allocator;  // backend/allocator.h

class Plan {
  public:
    virtual ~Plan() = default;
    // What the plan computes in: CompileInputs::precision, or what `automatic` came to.
    virtual Precision precision() const noexcept = 0;
};

struct CompileInputs {
    const Program* program = nullptr;     // planned; outlives the plan
    std::span<const BufferView> weights;  // one per program weight
    std::span<const KvLayout> kv;         // one per cache group
    ArenaLayout arena_layout;             // offsets of values for max_tokens and max_outputs
    BufferView arena;
    uint32_t max_tokens = 0;
    uint32_t max_outputs = 0;
    Precision precision = Precision::automatic;
    std::shared_ptr<Allocator> allocator;  // for what the plan needs beside the arena; none: heaps of the backend
    EventRing* events = nullptr;
};

using Ticket = uint64_t;

class Backend {
  public:
    virtual ~Backend() = default;
    virtual const DeviceInfo& device() const noexcept = 0;

    // Throws OutOfMemory.
    virtual std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label,
                                              Contents contents) = 0;
    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label) {
        return create_heap(bytes, storage, label, Contents::zero);
    }
    // A read-only view of host memory that `owner` keeps alive.
    virtual std::shared_ptr<Heap> wrap_host(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                            std::string_view label, HostMemory memory) = 0;
    // Copies between heaps of any storage, after all that was submitted; returns when done.
    virtual void copy(BufferView from, BufferView to) = 0;
    // The same from host memory, whatever it is made of.
    virtual void upload(std::span<const std::byte> from, BufferView to) = 0;
    // And to host memory.
    virtual void download(BufferView from, std::span<std::byte> to) = 0;
    // Zeroes a range, after all that was submitted; returns when done.
    virtual void clear(BufferView range) = 0;
    // Throws DeviceError, naming `owner` and the scope that uses the range, when a submission in flight still does.
    // Only where the backend keeps a ledger of what its submissions borrow: in debug builds, or with METALLIC_LEDGER=1.
    virtual void check_idle(const BufferView& range, std::string_view owner) const = 0;

    // Memory for transfers comes from `allocator` until it is detached, where the backend needs such memory. What came
    // from another one is given back.
    virtual void attach(std::shared_ptr<Allocator> allocator) = 0;
    virtual void detach(const Allocator& allocator) noexcept = 0;

    // All choices of kernel and specialisation happen here. Throws UnsupportedModelError, and RequestError for a
    // precision that the device does not have.
    virtual std::unique_ptr<Plan> compile(const CompileInputs& inputs) = 0;
    // The batch's spans must stay valid until the ticket completed. Logits or candidates are there, and errors
    // of the batch are thrown, by submit or by wait.
    virtual Ticket submit(Plan& plan, const Batch& batch) = 0;
    virtual void wait(Ticket ticket) = 0;
};

struct BackendOptions {
    std::string device = "auto";  // "auto", "cpu", "metal"
    uint32_t threads = 0;         // 0: all cores
};

// The backend of the host's own processor, which every build has.
std::unique_ptr<Backend> create_host_backend(uint32_t threads);

// The devices that this build can use on this machine, best first.
std::vector<DeviceInfo> list_devices();
// Throws RequestError for a device that does not exist, DeviceError for one that cannot be used.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

}  // namespace metallic
