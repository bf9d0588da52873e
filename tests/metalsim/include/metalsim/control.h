#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/executor.h"

// What a test may ask of the simulated device. All of it can also be set by environment variables, read when the device
// is first made, so that tests of a whole process need no API: METALSIM_MODE, METALSIM_FAULTS, METALSIM_DEVICE.
namespace metalsim {

enum class Mode : uint8_t {
    host,     // kernels run at full speed; the API is checked
    checked,  // every access of every kernel is checked too
    none,     // kernels do not run; for measuring the cost of encoding
};
// Applies to libraries made afterwards. METALSIM_MODE=host|checked|none.
void set_mode(Mode mode);
Mode mode() noexcept;

enum class FaultKind : uint8_t {
    buffer_allocation,  // newBuffer... returns nil
    heap_allocation,    // newHeap... returns nil
    command_buffer,     // completes with MTLCommandBufferStatusError and `code` (MTLCommandBufferError)
    slow_completion,    // completes `milliseconds` late
    device_lost,        // this and every later command buffer fails with MTLCommandBufferErrorDeviceRemoved
    library,            // newLibrary... returns an error
    pipeline,           // newComputePipelineState... returns an error
};
struct Fault {
    FaultKind kind = FaultKind::command_buffer;
    uint64_t nth = 1;  // the nth such call from now on; later ones succeed again
    uint64_t times = 1;
    int64_t code = 0;
    uint32_t milliseconds = 0;
};
// METALSIM_FAULTS="command_buffer:nth=3,code=8;heap_allocation:nth=1,times=2"
void inject(const Fault& fault);
void clear_faults();

// What the simulated device is. METALSIM_DEVICE="apple=7,metal3=1,memory=1073741824,residency_sets=0,..."
struct DeviceModel {
    std::string name = "metalsim";
    uint32_t apple_family = 9;
    bool metal3 = true;
    bool residency_sets = true;
    bool counter_sampling = true;
    bool placement_heaps = true;
    bool unified_memory = true;
    uint64_t memory_bytes = uint64_t{8} << 30;  // recommendedMaxWorkingSetSize; allocations beyond it fail
    uint64_t max_buffer_bytes = uint64_t{4} << 30;
    uint32_t max_threadgroup_bytes = 32768;
    // What __builtin_available and NSProcessInfo say. Before macOS 15 there are no residency sets, whatever the above.
    uint32_t macos_major = 15, macos_minor = 0;
    // How long a command buffer waits for an event, or a thread for a free place in a queue, before it is given up as
    // a deadlock.
    uint32_t stall_milliseconds = 10000;
};
void set_device(const DeviceModel& model);  // holds for devices made afterwards, and makes the next one a new one

struct Statistics {
    uint64_t command_buffers = 0, encoders = 0, dispatches = 0, barriers = 0, blits = 0;
    uint64_t buffers_alive = 0, heaps_alive = 0, bytes_allocated = 0, peak_bytes = 0;
    uint64_t libraries_compiled = 0, pipelines = 0, archive_hits = 0;
    uint64_t objects_alive = 0;  // of all Metal classes
    uint64_t retains = 0;        // messages, to see that the hot path sends none
    uint64_t signposts = 0;      // events and ends of intervals
};
Statistics statistics();

// Everything that the checks found since the last call. A report also fails the command buffer that it arose in
// (MTLCommandBufferErrorInvalidResource; its text is in the error's localizedDescription), so a test that does not look
// fails too.
std::vector<Report> take_reports();

}  // namespace metalsim
