#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/metal/device_facts.h"
#include "backend/metal/ops/preparation.h"
#include "backend/metal/plan_memory.h"
#include "metal_checks.h"

namespace metallic::testing {

// Runs what the Metal backend has beside steps, outside of any plan, every access checked.
class MetalKernels : public ::testing::Test {
  protected:
    struct Memory {
        std::shared_ptr<metal::MetalHeap> heap;
        metal::Binding binding;

        template <typename T>
        T* as() const noexcept {
            return reinterpret_cast<T*>(heap->host());
        }
    };

    void SetUp() override {
        metal::Ref<id<MTLDevice>> device = metal::find_device();
        if (!device) GTEST_SKIP() << "there is no Metal device";
        context = std::make_shared<metal::Context>(std::move(device), metal::ShaderSources{});
        transfers = std::make_unique<metal::Transfers>(context);
    }

    // Shared memory, filled.
    template <typename T>
    Memory memory(std::span<const T> data) {
        Memory result = memory(data.size_bytes());
        std::memcpy(result.heap->host(), data.data(), data.size_bytes());
        return result;
    }
    Memory memory(uint64_t bytes) {
        Memory result;
        result.heap = metal::allocate_heap(context, bytes, Storage::shared, "test", Contents::zero);
        result.heap->settle();
        result.binding = result.heap->bind(0, bytes);
        return result;
    }

    // Prepares and encodes one operation, and waits for it.
    template <typename T>
    void run(const CompileInputs& inputs, const std::function<T(metal::Preparation&)>& prepare,
             const std::function<void(const T&, metal::Encoder&)>& encode) {
        metal::PlanMemory plan_memory(context, *transfers, metal::heap_allocator(context));
        metal::Preparation preparation(inputs, plan_memory);
        const T operation = prepare(preparation);
        plan_memory.allocate_scratch();
        metal::Completion completion(context->progress());
        uint64_t number = 0;
        {
            metal::Context::Commands commands(*context, @"test", metal::Context::Commands::Lifetimes::kept_by_metal);
            metal::Encoder encoder;
            encoder.begin(commands.compute(@"test", nil), {});
            encode(operation, encoder);
            number = commands.commit(completion);
        }
        completion.wait(number);
        const std::exception_ptr error = context->judge(completion.outcome(), "test", 0);
        if (error) std::rethrow_exception(error);
    }

    const Checks checks{true};  // outlives all that runs
    std::shared_ptr<metal::Context> context;
    std::unique_ptr<metal::Transfers> transfers;
};

}  // namespace metallic::testing
