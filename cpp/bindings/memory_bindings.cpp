#include "bindings/memory_bindings.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "trace/events.h"

namespace nb = nanobind;

namespace metallic {

nb::list owner_list(std::span<const OwnerUse> uses) {
    nb::list result;
    for (const OwnerUse& use : uses) result.append(nb::make_tuple(use.owner, use.allocations, use.bytes));
    return result;
}

namespace {

nb::dict tag_dict(const TagUse& use) {
    nb::dict tag;
    tag["current"] = use.current;
    tag["peak"] = use.peak;
    tag["average"] = use.average;
    tag["allocations"] = use.allocations;
    tag["live"] = use.live;
    return tag;
}

nb::dict heap_dict(const HeapUse& heap) {
    nb::dict tags;
    for (size_t i = 0; i < heap.tags.size(); ++i) {
        if (heap.tags[i]) tags[tag_name(static_cast<Tag>(i))] = heap.tags[i];
    }
    nb::dict result;
    result["id"] = heap.id;
    result["bytes"] = heap.bytes;
    result["used"] = heap.used;
    result["largest_free"] = heap.largest_free;
    result["allocations"] = heap.allocations;
    result["storage"] = heap.storage == Storage::exclusive ? "private" : "shared";
    result["draining"] = heap.draining;
    result["tags"] = tags;
    return result;
}

Tag parse_tag(const std::string& name) {
    for (int i = 0; i < kTags; ++i) {
        if (name == tag_name(static_cast<Tag>(i))) return static_cast<Tag>(i);
    }
    throw nb::value_error(("no such tag: " + name).c_str());
}

// A pool over the CPU backend, with a clock that is set by hand: for tests and tools.
class PoolHandle {
  public:
    PoolHandle(uint64_t budget, uint64_t grace_ns) : now_(std::make_shared<uint64_t>(0)) {
        PoolOptions options;
        options.grace_ns = grace_ns;
        options.clock = [now = now_] { return *now; };
        pool_ = std::make_unique<Pool>(create_backend({"cpu", 1}), budget, std::move(options));
    }

    Pool& pool() const {
        if (!pool_) throw RequestError("the pool is closed");
        return *pool_;
    }
    void advance(uint64_t ns) { *now_ += ns; }
    void close() { pool_.reset(); }

  private:
    std::shared_ptr<uint64_t> now_;
    std::unique_ptr<Pool> pool_;
};

class AllocationHandle {
  public:
    explicit AllocationHandle(Allocation allocation) : allocation_(std::move(allocation)) {}

    const Allocation& get() const {
        if (!allocation_) throw RequestError("the allocation was freed");
        return allocation_;
    }
    void free() { allocation_.reset(); }
    std::byte* bytes() const { return reinterpret_cast<std::byte*>(get().view().address()); }

  private:
    Allocation allocation_;
};

AllocationHandle allocate(PoolHandle& handle, uint64_t bytes, const std::string& tag, const std::string& owner,
                          bool exclusive, bool zero) {
    return AllocationHandle(handle.pool().allocate_bytes(bytes, parse_tag(tag), owner,
                                                         exclusive ? Storage::exclusive : Storage::shared,
                                                         zero ? Contents::zero : Contents::undefined));
}

void bind_allocation(nb::module_& m) {
    nb::class_<AllocationHandle>(m, "PoolAllocation", "A part of a heap; for tests.")
        .def_prop_ro("heap_id", [](const AllocationHandle& a) { return a.get().heap_id(); })
        .def_prop_ro("offset", [](const AllocationHandle& a) { return a.get().view().offset; })
        .def_prop_ro("nbytes", [](const AllocationHandle& a) { return a.get().view().bytes; })
        .def_prop_ro("zeroed", [](const AllocationHandle& a) { return a.get().zeroed(); })
        .def(
            "fill",
            [](const AllocationHandle& a, uint8_t value) { std::memset(a.bytes(), value, a.get().view().bytes); },
            nb::arg("value"))
        .def(
            "holds_only",
            [](const AllocationHandle& a, uint8_t value) {
                const std::byte* const bytes = a.bytes();
                for (uint64_t i = 0; i < a.get().view().bytes; ++i) {
                    if (bytes[i] != std::byte{value}) return false;
                }
                return true;
            },
            nb::arg("value"), "Whether every byte has this value.")
        .def("free", &AllocationHandle::free);
}

}  // namespace

nb::dict pool_dict(const PoolStatistics& use, std::span<const Pool* const> pools) {
    nb::dict tags;
    for (size_t i = 0; i < use.tags.size(); ++i) tags[tag_name(static_cast<Tag>(i))] = tag_dict(use.tags[i]);
    nb::list heap_list, owners;
    for (const Pool* pool : pools) {
        for (const HeapUse& heap : pool->heaps()) heap_list.append(heap_dict(heap));
        owners.extend(owner_list(pool->leaks()));
    }
    nb::dict result;
    result["tags"] = tags;
    result["heap_list"] = heap_list;
    result["owners"] = owners;
    result["heaps"] = use.heaps;
    result["heap_bytes"] = use.heap_bytes;
    result["heap_peak"] = use.heap_peak;
    result["heaps_created"] = use.heaps_created;
    result["empty_heaps"] = use.empty_heaps;
    result["mapped_bytes"] = use.mapped_bytes;
    result["free_bytes"] = use.free_bytes;
    result["largest_free"] = use.largest_free;
    result["fragmentation"] = use.fragmentation();
    result["budget"] = use.budget;
    result["budget_used"] = use.budget_used;
    result["elapsed_ns"] = use.elapsed_ns;
    return result;
}

void bind_memory(nb::module_& m) {
    bind_allocation(m);
    nb::class_<PoolHandle>(m, "Pool", "A pool over CPU memory with a clock that is set by hand; for tests.")
        .def(nb::init<uint64_t, uint64_t>(), nb::arg("budget") = 0, nb::arg("grace_ns") = 0)
        .def("allocate", &allocate, nb::arg("nbytes"), nb::arg("tag"), nb::arg("owner"), nb::arg("exclusive") = false,
             nb::arg("zero") = false)
        .def("advance", &PoolHandle::advance, nb::arg("ns"))
        .def("trim", [](const PoolHandle& p) { return p.pool().trim(); })
        .def("drop_empty_heaps", [](const PoolHandle& p) { return p.pool().drop_empty_heaps(); })
        .def(
            "set_draining",
            [](const PoolHandle& p, uint64_t heap_id, bool draining) {
                return p.pool().set_draining(heap_id, draining);
            },
            nb::arg("heap_id"), nb::arg("draining"))
        .def(
            "memory",
            [](const PoolHandle& p) {
                const Pool* const pool = &p.pool();
                return pool_dict(pool->statistics(), {&pool, 1});
            },
            nb::sig("def memory(self) -> dict[str, object]"))
        .def("close", &PoolHandle::close, "Ends the pool; allocations stay usable and are reported.");
    m.def(
        "take_leak_reports",
        [] {
            nb::list result;
            for (const std::vector<OwnerUse>& report : take_leak_reports()) result.append(owner_list(report));
            return result;
        },
        nb::sig("def take_leak_reports() -> list[list[tuple[str, int, int]]]"),
        "What pools left behind when they were closed, since the last call: (owner, allocations, bytes) of each.");
    m.def("now_ns", &now_ns, "Nanoseconds of the monotonic clock that events are stamped with.");
    m.attr("pool_alignment") = Pool::kAlignment;
    m.attr("pool_heap_bytes") = Pool::kHeapBytes;
}

}  // namespace metallic
