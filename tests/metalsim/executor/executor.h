#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "abi/kernel_abi.h"
#include "msl/library.h"

// Runs kernels on the host: every thread of a threadgroup is a fiber, threadgroups are spread over the cores. Checks
// every access of checked libraries.
namespace metalsim {

struct Size3 {
    uint32_t x = 1, y = 1, z = 1;
    uint64_t count() const noexcept { return uint64_t{x} * y * z; }
};

enum class Problem : uint8_t {
    out_of_bounds,  // of a buffer, of threadgroup memory, or of anything that is no allocation at all
    use_after_release,
    not_resident,
    uninitialised_read,
    dispatch_hazard,  // two dispatches (or a blit), the same bytes, no barrier between, one writes
    thread_race,      // two threads of a dispatch, the same bytes, no barrier between, one writes
    read_only,        // a write to a constant buffer or to a mapped file
    misaligned,
    barrier_divergence,  // threads of a threadgroup that wait at different barriers, or have ended
    limit,               // threadgroup memory, grid, argument or setBytes sizes
    api,                 // misuse of the Metal API: an unended encoder, a command buffer committed twice, ...
};
const char* problem_name(Problem problem) noexcept;

// Of one launch; the rest is counted in the last one's detail.
inline constexpr uint32_t kMaxReports = 16;

struct Report {
    Problem problem = Problem::api;
    std::string kernel;      // empty for API misuse
    MetalsimUint3 thread{};  // in the grid
    std::string buffer;      // label of the allocation, or "threadgroup"
    uint64_t offset = 0;     // in the buffer
    uint32_t bytes = 0;
    std::string scope;         // encoder label and debug groups, by "/"
    std::string detail;        // e.g. the other dispatch of a hazard
    std::string text() const;  // all of it, on one line
};

// What the checker knows of device memory. A region may hold others (buffers in a heap): the smallest that contains an
// address names it. Thread-safe.
class Memory {
  public:
    using Id = uint64_t;
    virtual ~Memory() = default;

    struct Region {
        const void* base = nullptr;
        uint64_t bytes = 0;
        std::string label;
        bool initialised = false;  // bytes count as written
        bool read_only = false;
    };
    virtual Id add(const Region& region) = 0;
    virtual void rename(Id id, std::string_view label) = 0;
    // The region's addresses are remembered: a later access is a use after release. The caller keeps the address range
    // mapped until `forget`.
    virtual void release(Id id) = 0;
    virtual void forget(Id id) = 0;
    // Bytes written by a copy, a fill or the host.
    virtual void mark_written(const void* at, uint64_t bytes) = 0;
    // What a dispatch may touch: the regions that are bound or made resident. Resolved per launch; see Launch.
};

struct Launch {
    const msl::Function* function = nullptr;
    const MetalsimArguments* arguments = nullptr;
    Size3 threads_per_threadgroup;
    Size3 threadgroups;      // uniform dispatch, or
    Size3 threads{0, 0, 0};  // the exact threads; x = 0: uniform
    std::string_view scope;
    const std::vector<Memory::Id>* resident = nullptr;  // sorted; regions inside a resident one are resident; null: all
    const std::vector<Memory::Id>* writable = nullptr;  // the same, of those that may be written
};

class Executor {
  public:
    virtual ~Executor() = default;
    virtual Memory& memory() noexcept = 0;
    // Runs a launch and returns; problems go to reports(). At most kMaxReports of one launch are kept. True if there
    // was none. Launches of several threads may overlap.
    virtual bool run(const Launch& launch) = 0;
    // Accesses of a blit, for hazards.
    virtual void touch(const void* at, uint64_t bytes, bool write, std::string_view scope) = 0;
    // Launches after this are ordered behind those before, as by a barrier, an encoder's end or a serial encoder's
    // dispatches.
    virtual void order() = 0;
    virtual void report(Report report) = 0;
    virtual std::vector<Report> take_reports() = 0;
};

// What compiled libraries call while their kernels run.
const MetalsimServices& services() noexcept;

// `workers` 0: one per core, or METALSIM_WORKERS.
std::unique_ptr<Executor> create_executor(uint32_t workers = 0);

}  // namespace metalsim
