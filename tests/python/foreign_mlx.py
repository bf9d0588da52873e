"""How MLX's kernel headers become translation units: what its just-in-time compiler puts before each, and instances.

The headers hold templates; MLX instantiates them by name at run time. ``{T}`` in an instance stands for each of the
three floating-point types. Names and parameters are those of the headers themselves (``mlx/backend/metal/kernels``).
"""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = ("float", "half", "bfloat16_t")


@dataclass(frozen=True)
class Unit:
    """A header with kernels: the headers that go before it, and instances of its kernels."""

    header: str
    before: tuple[str, ...]
    kernels: tuple[str, ...]

    def instances(self) -> list[str]:
        return [k.replace("{T}", t) for k in self.kernels for t in (FLOATS if "{T}" in k else ("",))]

    def source(self, instances: list[str] | None = None) -> str:
        lines = [f'#include "mlx/backend/metal/kernels/{h}"' for h in ("utils.h", *self.before, self.header)]
        for k in self.instances() if instances is None else instances:
            lines.append(f'template [[host_name("{k}")]] [[kernel]] decltype({k}) {k};')
        return "\n".join(lines) + "\n"


def _binary(ops: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[str, ...]:
    out = [f"binary_{kind}<{{T}}, {{T}}, {op}>" for op in ops for kind in kinds]
    return tuple(out)


_BINARY_KINDS = ("ss", "sv", "vs", "vv", "sv2", "vs2", "vv2", "g_nd1", "g_nd2", "g_nd3", "g")
# fmt: off
_UNARY = (
    "Abs", "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTanh", "Ceil", "Cos", "Cosh", "Erf", "ErfInv",
    "Exp", "Expm1", "Floor", "Log", "Log2", "Log10", "Log1p", "Negative", "Round", "Sigmoid", "Sign", "Sin",
    "Sinh", "Square", "Sqrt", "Rsqrt", "Tan", "Tanh",
)
# fmt: on
_COPY = "s v s2 v2 g_nd1 g_nd2 g_nd3 g gg_nd1 gg_nd2 gg_nd3 gg gg_dynamic_nd1 gg_dynamic_nd2 gg_dynamic_nd3 gg_dynamic"
_REDUCE = ("atomic.h", "reduction/ops.h", "reduce_utils.h", "reduction/reduce_init.h")
_STEEL = ("steel/gemm/gemm.h",)
_CONV = ("steel/gemm/gemm.h", "steel/conv/params.h", "steel/utils.h", "steel/conv/conv.h")
_BLOCK = "32, 32, 16, 2, 2"

UNITS = (
    Unit("arange.h", (), ("arange<{T}>", "arange<int32_t>", "arange<uint8_t>")),
    Unit(
        "binary.h",
        ("binary_ops.h",),
        (
            *_binary(("Add", "Divide", "Maximum", "Multiply", "Power", "Subtract", "LogAddExp"), _BINARY_KINDS),
            "binary_vv<int32_t, int32_t, Remainder>",
            "binary_vv<uint8_t, uint8_t, BitwiseXor>",
            "binary_vv<float, bool, Less>",
            "binary_vv<complex64_t, complex64_t, Multiply>",
        ),
    ),
    Unit("binary_two.h", ("binary_ops.h",), _binary(("DivMod",), _BINARY_KINDS)),
    Unit(
        "copy.h",
        (),
        (
            *tuple(f"copy_{kind}<{{T}}, float>" for kind in _COPY.split()),
            "copy_v<float, complex64_t>",
            "copy_v<bool, half>",
            "copy_g<int64_t, bfloat16_t>",
        ),
    ),
    Unit("cross_entropy.h", (), ("cross_entropy<{T}>", "cross_entropy_vjp<{T}>")),
    Unit("dot.h", (), ("dot_product<{T}, 4, 256, 8>",)),
    Unit(
        "fft.h",
        (),
        (
            "fft<256, float2, float2>",
            "fft<256, float, float2>",
            "fft<256, float2, float>",
            "rader_fft<256, float2, float2>",
            "bluestein_fft<256, float2, float2>",
            "four_step_fft<256, float2, float2, 0>",
            "four_step_fft<256, float2, float2, 1>",
        ),
    ),
    Unit(
        "fp_quantized.h",
        (*_STEEL, "quantized_utils.h"),
        (
            "fp_qmv_quad<{T}, 32, 4, 64, 0>",
            "fp_qmv_fast<{T}, 32, 4, 0>",
            "fp_qmv<{T}, 32, 4, 0>",
            "fp_qmv_fast<{T}, 16, 4, 0>",
            "fp_qmv<{T}, 32, 8, 1>",
            "fp_qvm<{T}, 32, 4, 0>",
            "fp_qvm_split_k<{T}, 32, 4, 8>",
            "fp_qmm_t<{T}, 32, 4, 1, 0>",
            "fp_qmm_n<{T}, 32, 4, 0>",
            "fp_gather_qmv_fast<{T}, 32, 4>",
            "fp_gather_qmv<{T}, 32, 4>",
            "fp_gather_qvm<{T}, 32, 4>",
            "fp_gather_qmm_t<{T}, 32, 4, 1>",
            "fp_qmm_t_splitk<{T}, 32, 4, 1>",
            "fp_gather_qmm_n<{T}, 32, 4>",
            "fp_gather_qmm_rhs<{T}, 32, 4, 16, 32, 32, 1, 2, 1>",
            "fp_quantize<{T}, 32, 4, 0>",
            "fp_dequantize<{T}, 32, 4, 0>",
        ),
    ),
    Unit(
        "gated_delta_update.h",
        (),
        ("gated_delta_fused_chunk<{T}, 128, 128, 2, 4, 16>", "gated_delta_seq<{T}, 128, 128, 2, 4, 0>"),
    ),
    Unit("gated_delta_update_vjp.h", (), ("gated_delta_vjp_seq<{T}, 128, 128, 2, 4, 16>",)),
    Unit(
        "gemv.h",
        (),
        (
            "gemv<{T}, 4, 1, 1, 32, 4, 4, 0, 0>",
            "gemv<{T}, 1, 8, 1, 32, 4, 4, 1, 1>",
            "gemv_gather<{T}, 4, 1, 1, 32, 4, 4>",
            "gemv_t<{T}, 1, 2, 8, 4, 4, 4, 0, 0>",
            "gemv_t_gather<{T}, 1, 2, 8, 4, 4, 4>",
            "gemv_wide<{T}, 4, 8>",
            "gemv_wide_gather<{T}, 4, 8>",
        ),
    ),
    Unit(
        "gemv_masked.h",
        (*_STEEL,),
        (
            "gemv_masked<{T}, bool, bool, 1, 1, 1, 32, 4, 4, 0>",
            "gemv_t_masked<{T}, bool, {T}, 1, 1, 8, 4, 4, 4, 1>",
        ),
    ),
    Unit("hadamard.h", (), ("hadamard_n<{T}, 1024, 16, 4>",)),
    Unit("indexing/gather_axis.h", (), ("gather_axis<{T}, uint32_t, int, 1, 0>",)),
    Unit("indexing/gather_front.h", ("indexing/indexing.h",), ("gather_front<{T}, int32_t, int64_t, 4>",)),
    Unit("indexing/masked_scatter.h", (), ("masked_assign_impl<{T}, true>", "masked_assign_impl<int64_t, false>")),
    Unit(
        "indexing/scatter.h",
        (*_REDUCE, "binary_ops.h"),
        ("slice_update_op_impl<{T}, int32_t, Add, true, true, false, 1, 2>",),
    ),
    Unit("indexing/scatter_axis.h", _REDUCE, ("scatter_axis<{T}, int32_t, int, Sum<{T}>, 1, 0>",)),
    Unit("logsumexp.h", (), ("logsumexp<{T}>", "logsumexp_looped<{T}>")),
    Unit(
        "quantized.h",
        (*_STEEL, "quantized_utils.h"),
        (
            *(f"affine_qmv_fast<{{T}}, 64, {bits}, 0>" for bits in (2, 3, 4, 5, 6, 8)),
            *(f"affine_qmv<{{T}}, 32, {bits}, 1>" for bits in (2, 3, 4, 5, 6, 8)),
            "affine_qmv_quad<{T}, 64, 4, 64, 0>",
            "affine_qmv_wide<{T}, 64, 4, 4, 8, 0>",
            "affine_qvm<{T}, 64, 4, 0>",
            "affine_qvm_split_k<{T}, 64, 8, 8>",
            "affine_qmm_t<{T}, 64, 4, 1, 0>",
            "affine_qmm_t_splitk<{T}, 64, 4, 1>",
            "affine_qmm_n<{T}, 64, 4, 0>",
            "affine_gather_qmv_fast<{T}, 64, 4>",
            "affine_gather_qmv<{T}, 64, 4>",
            "affine_gather_qvm<{T}, 64, 4>",
            "affine_gather_qmm_t<{T}, 64, 4, 1>",
            "affine_gather_qmm_n<{T}, 64, 4>",
            "affine_gather_qmm_rhs<{T}, 64, 4, 16, 32, 32, 1, 2, 1>",
            "affine_quantize<{T}, 64, 4>",
            "affine_dequantize<{T}, 64, 4>",
        ),
    ),
    Unit("reduction/reduce_init.h", _REDUCE[:-1], ("init_reduce<{T}, Sum<{T}>>", "init_reduce<bool, And<bool>>")),
    Unit(
        "reduction/reduce_all.h",
        _REDUCE,
        (
            "all_reduce<{T}, {T}, Sum<{T}>>",
            "all_reduce<int32_t, int32_t, Max<int32_t>>",
            "all_reduce<bool, bool, Or<bool>>",
        ),
    ),
    Unit(
        "reduction/reduce_col.h",
        _REDUCE,
        (
            "col_reduce_small<{T}, {T}, Sum<{T}>, int, 1>",
            "col_reduce_longcolumn<{T}, {T}, Max<{T}>, int, 1>",
            "col_reduce_looped<{T}, {T}, Sum<{T}>, int, 1, 32, 32>",
            "col_reduce_2pass<{T}, {T}, Prod<{T}>, int, 1, 32, 32>",
        ),
    ),
    Unit(
        "reduction/reduce_row.h",
        _REDUCE,
        (
            "row_reduce_small<{T}, {T}, Sum<{T}>, int, 1>",
            "row_reduce_simple<{T}, {T}, Min<{T}>>",
            "row_reduce_looped<{T}, {T}, Sum<{T}>, int, 2>",
        ),
    ),
    Unit(
        "scan.h",
        (),
        (
            "contiguous_scan<{T}, {T}, CumSum<{T}>, 4, true, false>",
            "contiguous_scan<{T}, {T}, CumMax<{T}>, 4, false, true>",
            "strided_scan<{T}, {T}, CumProd<{T}>, 4, true, false>",
        ),
    ),
    Unit("sdpa_blocked.h", (), ("sdpa_blocked_scale_copy<{T}>", "sdpa_blocked_causal_mask<{T}>")),
    Unit(
        "sdpa_vector.h",
        (),
        (
            "sdpa_vector<{T}, 64>",
            "sdpa_vector<{T}, 128>",
            "sdpa_vector_2pass_1<{T}, 128>",
            "sdpa_vector_2pass_2<{T}, 128>",
        ),
    ),
    Unit("searchsorted.h", ("sort.h",), ("searchsorted<{T}, true>", "searchsorted<int32_t, false>")),
    Unit("softmax.h", (), ("softmax_single_row<{T}, float>", "softmax_single_row<{T}>", "softmax_looped<{T}, float>")),
    Unit(
        "sort.h",
        (),
        (
            "block_sort<{T}, {T}, false, 128, 4>",
            "block_sort_nc<{T}, uint32_t, true, 128, 4>",
            "mb_block_sort<{T}, uint32_t, true, 128, 4>",
            "mb_block_partition<{T}, uint32_t, true, 128, 4>",
            "mb_block_merge<{T}, uint32_t, true, 128, 4>",
        ),
    ),
    Unit(
        "steel/attn/kernels/steel_attention.h", ("steel/attn/attn.h",), ("attention<{T}, 32, 32, 64, 64, 4, 1, bool>",)
    ),
    Unit("steel/conv/kernels/steel_conv.h", _CONV, (f"implicit_gemm_conv_2d<{{T}}, {_BLOCK}, 0, false>",)),
    Unit("steel/conv/kernels/steel_conv_3d.h", _CONV, (f"implicit_gemm_conv_3d<{{T}}, {_BLOCK}, false>",)),
    Unit(
        "steel/conv/kernels/steel_conv_general.h",
        (*_CONV, "steel/conv/loaders/loader_general.h"),
        (f"implicit_gemm_conv_2d_general<{{T}}, {_BLOCK}>",),
    ),
    Unit(
        "steel/gemm/kernels/steel_gemm_fused.h",
        _STEEL,
        (f"gemm<{{T}}, {_BLOCK}, false, false>", f"gemm<{{T}}, {_BLOCK}, false, true>"),
    ),
    Unit(
        "steel/gemm/kernels/steel_gemm_gather.h",
        _STEEL,
        (f"gather_mm<{{T}}, {_BLOCK}, false, true>", "gather_mm_rhs<{T}, 16, 64, 16, 1, 2, false, true>"),
    ),
    Unit(
        "steel/gemm/kernels/steel_gemm_masked.h",
        _STEEL,
        (f"block_masked_gemm<{{T}}, bool, {{T}}, {_BLOCK}, false, true, true, true>",),
    ),
    Unit("steel/gemm/kernels/steel_gemm_segmented.h", _STEEL, (f"segmented_mm<{{T}}, {_BLOCK}, false, true>",)),
    Unit(
        "steel/gemm/kernels/steel_gemm_splitk.h",
        _STEEL,
        (
            f"gemm_splitk<{{T}}, float, {_BLOCK}, false, true, true, true>",
            "gemm_splitk_accum<float, {T}>",
            "gemm_splitk_accum_axpby<float, {T}>",
        ),
    ),
    Unit(
        "ternary.h",
        ("ternary_ops.h",),
        (
            "ternary_v<{T}, Select, false, true>",
            "ternary_v2<{T}, Select, false, false>",
            *(f"ternary_{kind}<{{T}}, Select>" for kind in ("g_nd1", "g_nd2", "g_nd3", "g")),
        ),
    ),
    Unit(
        "unary.h",
        ("unary_ops.h",),
        (
            *(f"unary_v<{{T}}, {{T}}, {op}>" for op in _UNARY),
            *(f"unary_{kind}<{{T}}, {{T}}, Exp>" for kind in ("v2", "g")),
            "unary_v<complex64_t, complex64_t, Exp>",
            "unary_v<bool, bool, LogicalNot>",
            "unary_v<int32_t, int32_t, BitwiseInvert>",
        ),
    ),
)
