#include <metal_stdlib>

#include "elementary.h"
#include "params.h"
#include "wide_float.h"

using namespace metal;

// The best k logits of each row, best first, the lower id first among equals, as the host's sampler orders them. Logits
// are handled as bits throughout, so no mode of the compiler and no flushing of subnormals can change one.

// ---- edits: logit bias, bans and penalties ----

inline uint edited(uint bits, device const LogitEditParams* edit) {
    if (edit->kind == kLogitBan) return 0xff800000u;
    WideFloat x = wide_of_float(bits);
    if (edit->kind == kLogitBias) return float_of_wide(wide_sum(x, wide_of_float(edit->bias)));
    if (edit->repeated != 0) {
        const WideFloat factor = wide_of_double(ulong(edit->repetition_high) << 32 | edit->repetition_low);
        x = x.negative || x.mantissa == 0 ? wide_product(x, factor) : wide_quotient(x, factor);
    }
    const WideFloat less = wide_of_double(ulong(edit->less_high) << 32 | edit->less_low);
    return float_of_wide(wide_sum(x, wide_negative(less)));
}

// Edits are sorted by row and token; those of one token are applied in turn, by one thread. Infinities and NaNs stay as
// they are: -inf is a banned token, and the others are reported as damage.
kernel void edit_logits(device uint* logits [[buffer(0)]], device const LogitEditParams* edits [[buffer(1)]],
                        constant EditParams& params [[buffer(2)]], uint place [[thread_position_in_grid]]) {
    if (place >= params.edits) return;
    const uint row = edits[place].row, token = edits[place].token;
    if (place > 0 && edits[place - 1].row == row && edits[place - 1].token == token) return;
    const ulong at = ulong(row) * params.vocabulary + token;
    uint bits = logits[at];
    for (uint i = place; i < params.edits && edits[i].row == row && edits[i].token == token; ++i) {
        if ((bits & 0x7f800000u) == 0x7f800000u) return;
        bits = edited(bits, edits + i);
        logits[at] = bits;
    }
}

// ---- selection: in rounds, each leaving at most `most` of every chunk, until one chunk is left ----

constant bool select_from_logits [[function_constant(0)]];  // the first round; later ones read (key, id)
constant bool select_last [[function_constant(1)]];

static constant constexpr uint kNoKey = ~0u;  // of what cannot be chosen
static constant constexpr uint kThreads = kSelectThreads;
static constant constexpr uint kSimdgroups = kSelectThreads / kSimdWidth;
static constant constexpr uint kEach = kSelectChunk / kSelectThreads;

// Ascending keys are descending logits; both zeros are one value. A NaN or +inf comes before everything: the host finds
// the damage in the first candidate.
inline uint descending_key(uint bits) {
    if (is_nan_bits(bits) || bits == 0x7f800000u) return 0;
    if (bits == 0xff800000u) return kNoKey;
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 != 0 ? bits : bits ^ 0x7fffffffu;
}

inline uint key_at(device const uint* logits, device const uint* mask, bool masked, uint token) {
    const uint key = descending_key(logits[token]);
    const bool allowed = !masked || (mask[token / 32] >> (token % 32) & 1u) != 0;
    return allowed || key == 0 ? key : kNoKey;
}

inline void put_candidate(device CandidateParams* to, device const uint* logits, uint key, uint token) {
    to->token = key == kNoKey ? -1 : int(token);
    to->logit = key == kNoKey ? 0xff800000u : logits[token];
}

// The sum of the values of all threads before this one, and of all threads.
inline uint exclusive_sum(uint value, threadgroup uint* sums, uint simdgroup, uint lane, thread uint& total) {
    const uint inner = simd_prefix_exclusive_sum(value);
    const uint of_simdgroup = simd_sum(value);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the last user of `sums` is done
    if (lane == 0) sums[simdgroup] = of_simdgroup;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint before = 0;
    total = 0;
    for (uint i = 0; i < kSimdgroups; ++i) {
        before += i < simdgroup ? sums[i] : 0u;
        total += sums[i];
    }
    return before + inner;
}

// Where the best `wanted` of the threadgroup's keys end: all keys less than `cut`, and the first `ties` that equal it.
// A radix search, 8 bits at a time.
inline void find_cut(thread const uint* keys, uint wanted, threadgroup atomic_uint* histogram, threadgroup uint* sums,
                     threadgroup uint* found, uint index, uint simdgroup, uint lane, thread uint& cut,
                     thread uint& ties) {
    uint prefix = 0, decided = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        atomic_store_explicit(&histogram[index], 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = 0; j < kEach; ++j) {
            if (keys[j] == kNoKey || (keys[j] & decided) != prefix) continue;
            atomic_fetch_add_explicit(&histogram[keys[j] >> shift & 0xffu], 1u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint own = atomic_load_explicit(&histogram[index], memory_order_relaxed);
        uint total;
        const uint before = exclusive_sum(own, sums, simdgroup, lane, total);
        if (total <= wanted && shift == 24) {  // the same for all threads
            cut = kNoKey;
            ties = 0;
            return;
        }
        if (before < wanted && wanted <= before + own) {  // one thread
            found[0] = index;
            found[1] = before;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix |= found[0] << shift;
        decided |= 0xffu << shift;
        wanted -= found[1];
    }
    cut = prefix;
    ties = wanted;
}

// Bitonic sort of kSelectThreads pairs by key, then id.
inline void sort_pairs(threadgroup uint2* pairs, uint index) {
    for (uint size = 2; size <= kThreads; size *= 2) {
        for (uint distance = size / 2; distance > 0; distance /= 2) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint other = index ^ distance;
            if (other <= index) continue;
            const uint2 a = pairs[index], b = pairs[other];
            const bool descends = a.x > b.x || (a.x == b.x && a.y > b.y);
            if (descends == ((index & size) == 0)) {
                pairs[index] = b;
                pairs[other] = a;
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Grid: [chunks, rows] threadgroups. `from` and `to` are [rows, params.count] and [rows, chunks * params.most] pairs of
// key and id, ids ascending among equal keys, kNoKey where there is none.
kernel void select_top(device const uint* logits [[buffer(0)]], device const uint* masks [[buffer(1)]],
                       device const uint2* from [[buffer(2)]], device uint2* to [[buffer(3)]],
                       device CandidateParams* candidates [[buffer(4)]],
                       device const SelectRowParams* rows [[buffer(5)]], constant SelectTopParams& params [[buffer(6)]],
                       uint2 place [[threadgroup_position_in_grid]], uint2 places [[threadgroups_per_grid]],
                       uint index [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup atomic_uint histogram[kThreads];
    threadgroup uint sums[kSimdgroups];
    threadgroup uint found[2];
    threadgroup uint2 chosen[kThreads];
    const uint row = place.y;
    logits += ulong(row) * params.vocabulary;
    from += ulong(row) * params.count;
    // Contiguous elements per thread: the order of threads is the order of ids.
    const uint first = place.x * kSelectChunk + index * kEach;
    device const uint* mask = masks + rows[row].mask_word;
    const bool masked = rows[row].masked != 0;
    uint keys[kEach];
    for (uint j = 0; j < kEach; ++j) {
        const uint i = first + j;
        keys[j] = kNoKey;
        if (i < params.count) keys[j] = select_from_logits ? key_at(logits, mask, masked, i) : from[i].x;
    }
    uint cut, ties;
    find_cut(keys, rows[row].k, histogram, sums, found, index, simdgroup, lane, cut, ties);
    uint equal = 0, less = 0, total;
    for (uint j = 0; j < kEach; ++j) {
        equal += keys[j] == cut && cut != kNoKey ? 1u : 0u;
        less += keys[j] < cut ? 1u : 0u;
    }
    const uint equal_before = exclusive_sum(equal, sums, simdgroup, lane, total);
    const uint quota = equal_before < ties ? min(equal, ties - equal_before) : 0u;
    uint at = exclusive_sum(less + quota, sums, simdgroup, lane, total);
    chosen[index] = uint2(kNoKey, ~0u);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint taken = 0;
    for (uint j = 0; j < kEach; ++j) {
        const bool tie = keys[j] == cut && taken < quota;
        if (!(keys[j] < cut) && !tie) continue;
        taken += tie ? 1u : 0u;
        const uint i = first + j;
        chosen[at++] = uint2(keys[j], select_from_logits ? i : from[i].y);
    }
    if (select_last) {
        sort_pairs(chosen, index);
        device CandidateParams* best = candidates + ulong(row) * params.most;
        if (index < params.most) put_candidate(best + index, logits, chosen[index].x, chosen[index].y);
        return;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index < params.most) to[(ulong(row) * places.x + place.x) * params.most + index] = chosen[index];
}

// The same for rows that all want one candidate.
kernel void select_best(device const uint* logits [[buffer(0)]], device const uint* masks [[buffer(1)]],
                        device const uint2* from [[buffer(2)]], device uint2* to [[buffer(3)]],
                        device CandidateParams* candidates [[buffer(4)]],
                        device const SelectRowParams* rows [[buffer(5)]],
                        constant SelectTopParams& params [[buffer(6)]], uint2 place [[threadgroup_position_in_grid]],
                        uint2 places [[threadgroups_per_grid]], uint index [[thread_index_in_threadgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint2 winners[kSimdgroups];
    const uint row = place.y;
    logits += ulong(row) * params.vocabulary;
    from += ulong(row) * params.count;
    device const uint* mask = masks + rows[row].mask_word;
    const bool masked = rows[row].masked != 0;
    const uint end = min(params.count, (place.x + 1) * kSelectChunk);
    uint best = kNoKey, id = ~0u;
    for (uint i = place.x * kSelectChunk + index; i < end; i += kThreads) {
        const uint key = select_from_logits ? key_at(logits, mask, masked, i) : from[i].x;
        if (key >= best) continue;  // ids ascend
        best = key;
        id = select_from_logits ? i : from[i].y;
    }
    const uint winner = simd_min(best);
    const uint winner_id = simd_min(best == winner ? id : ~0u);
    if (lane == 0) winners[simdgroup] = uint2(winner, winner_id);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index != 0) return;
    uint2 first = winners[0];
    for (uint i = 1; i < kSimdgroups; ++i) {
        const uint2 next = winners[i];
        if (next.x < first.x || (next.x == first.x && next.y < first.y)) first = next;
    }
    if (select_last) {
        put_candidate(candidates + row, logits, first.x, first.y);
    } else {
        to[ulong(row) * places.x + place.x] = first;
    }
}
