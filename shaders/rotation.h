#pragma once

#include <metal_stdlib>

using namespace metal;

// Rotary embedding. The angle of a pair is position * inverse_frequency. Its whole turns are dropped by integer
// arithmetic, which is exact at any position: `steps` holds inverse_frequency / (2 pi) modulo 1 in units of 2^-64
// (x: the low word), so that position * step modulo 2^64 is the fraction of a turn.
constant bool rope_neox [[function_constant(2)]];  // pairs (i, i + dims / 2), not (2i, 2i + 1)
constant uint rope_dims [[function_constant(3)]];  // elements that are turned; even

// (cos, sin) of the angle. Positions from 2^24 on are rounded to floats first, as everywhere in the engine.
inline float2 rotation_of(uint position, uint2 step) {
    const uint rounded = uint(float(position));
    const uint turn = rounded * step.y + mulhi(rounded, step.x);  // in units of 2^-32
    const uint quarter = (turn + 0x20000000u) >> 30;
    const float angle = float(int(turn - (quarter << 30))) * 1.46291807926715968e-9f;  // 2 pi / 2^32; within pi / 4
    const float c = precise::cos(angle), s = precise::sin(angle);
    const float2 turned = quarter % 2 == 0 ? float2(c, s) : float2(-s, c);
    return quarter < 2 ? turned : -turned;
}

inline float2 rotate(float2 x, float2 turn) {
    return float2(x.x * turn.x - x.y * turn.y, x.y * turn.x + x.x * turn.y);
}

// The elements of pair i.
inline uint2 rotation_pair(uint i) {
    return rope_neox ? uint2(i, i + rope_dims / 2) : uint2(2 * i, 2 * i + 1);
}
