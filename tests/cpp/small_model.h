#pragma once

#include "reference_check.h"

namespace metallic::testing {

// One layer of attention with a window beside it: enough for every check of a batch.
inline TestModel small_model() {
    TestModel model;
    model.program.groups = {{0, 1, 32, 1}, {40, 1, 32, 1}};
    const ValueId q = model.input(32), k = model.input(32), v = model.input(32);
    ValueId out = q;
    for (uint32_t group = 0; group < 2; ++group) {
        KvWriteStep write{};
        write.group = group, write.k = k, write.v = v;
        model.step(write);
        AttentionStep attention{};
        attention.group = group, attention.heads = 1, attention.scale = 0.2f, attention.sinks = kNone;
        attention.q = out, attention.out = model.value(32);
        model.step(attention);
        out = attention.out;
    }
    model.finish(out);
    return model;
}

}  // namespace metallic::testing
