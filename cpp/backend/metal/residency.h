#pragma once

#import <Metal/Metal.h>

#include <mutex>
#include <vector>

#include "backend/metal/objc_ref.h"

// MTLResidencySet is of the SDK of macOS 15.
#if !defined(__MAC_OS_X_VERSION_MAX_ALLOWED) || __MAC_OS_X_VERSION_MAX_ALLOWED >= 150000
#define METALLIC_RESIDENCY_SETS 1
#endif

namespace metallic::metal {

// Keeps what kernels reach by address where the GPU can see it: in a residency set of the queue on systems that have
// them, by naming the buffers that span the heaps in every encoder on others: kernels write some of them, and useHeap:
// stands for reading alone. Thread-safe.
class Residency {
  public:
    Residency(id<MTLDevice> device, id<MTLCommandQueue> queue);

    // `whole` is the heap's buffer.
    void add(id<MTLHeap> heap, id<MTLBuffer> whole);
    // No encoder names it from now on. A set keeps its heap until that is removed.
    void forget(id<MTLBuffer> whole);
    void remove(id<MTLHeap> heap);
    // Buffers outside of heaps are bound in every encoder that uses them; the set spares Metal the work of each time.
    void add(id<MTLBuffer> buffer);
    void remove(id<MTLBuffer> buffer);

    // What was added and removed takes effect: before a command buffer is committed, and so that what was removed can
    // go.
    void commit();
    void use_in(id<MTLComputeCommandEncoder> encoder) const;

  private:
    mutable std::mutex mutex_;
#ifdef METALLIC_RESIDENCY_SETS
    Ref<id> set_;  // an MTLResidencySet, a type that may be used only where the system has it
    bool changed_ = false;
#endif
    std::vector<id<MTLResource>> named_;  // where there is no set
};

}  // namespace metallic::metal
