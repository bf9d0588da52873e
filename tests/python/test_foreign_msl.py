"""metalsim compiles and runs MSL that others wrote: MLX's kernel headers and llama.cpp's kernels.

Both are fetched from the package index at test time and never kept. The default run takes a few kernels; all of them
(``-m foreign``) take a quarter of an hour on two cores.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import foreign_mlx

REPOSITORY = Path(__file__).parents[2]
# The versions whose kernels the tests know.
MLX = "mlx-metal==0.32.4"
LLAMA = "llama-cpp-python==0.3.36"
KERNELS = Path("mlx/backend/metal/kernels")


@pytest.fixture(autouse=True)
def only_on_request(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("foreign") and "foreign" not in request.config.getoption("markexpr"):
        pytest.skip("runs with -m foreign")


def tool(name: str) -> Path:
    """A program of metalsim, from METALSIM_BIN or a build folder of this tree."""
    given = os.environ.get("METALSIM_BIN")
    places = (
        [Path(given)] if given else sorted((REPOSITORY / "build").glob("*")) if (REPOSITORY / "build").exists() else []
    )
    for place in places:
        for found in (place / name, *place.glob(f"**/{name}")):
            if found.is_file() and os.access(found, os.X_OK):
                return found
    pytest.skip(f"metalsim's {name} is not built")


def fetch(arguments: list[str], pattern: str, folder: Path) -> Path:
    """A distribution from the package index, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, *arguments, "--dest", str(folder)], capture_output=True, text=True, timeout=400, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the package index did not answer: foreign MSL is not tried")
    found = sorted(folder.glob(pattern))
    if done.returncode != 0 or not found:
        reason = done.stderr.strip().splitlines() or ["no file"]
        pytest.skip(f"{arguments[0]} cannot be downloaded ({reason[-1]}): foreign MSL is not tried")
    return found[-1]


@pytest.fixture(scope="session")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The include folder of MLX's macOS wheel."""
    given = os.environ.get("METALSIM_MLX")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("mlx")
    options = [MLX, "--platform", "macosx_14_0_arm64", "--only-binary=:all:"]
    with zipfile.ZipFile(fetch(options, "mlx_metal-*.whl", folder)) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith("mlx/include/mlx/")])
    return folder / "mlx/include"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ggml-metal of llama.cpp, out of the source distribution of llama-cpp-python."""
    given = os.environ.get("METALSIM_LLAMA")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("llama")
    with tarfile.open(fetch([LLAMA, "--no-binary=llama-cpp-python"], "llama_cpp_python-*.tar.gz", folder)) as sdist:
        members = [
            m for m in sdist.getmembers() if "/ggml/src/ggml-metal/" in m.name or m.name.endswith("/ggml-common.h")
        ]
        for member in members:
            member.name = member.name.split("/ggml/src/")[-1]
            if member.isfile():
                sdist.extract(member, folder, set_attrs=False)
    return folder / "ggml-metal"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = os.environ.get("METALSIM_CACHE") or str(tmp_path_factory.mktemp("metalsim"))
    return {**os.environ, "METALSIM_CACHE": cache}


class Kernels:
    """Runs kernels of one source: arrays in, the same arrays out."""

    def __init__(self, folder: Path, environment: dict[str, str], source: Path, includes: list[Path]) -> None:
        self.folder, self.environment = folder, environment
        self.head = [f"source {source}", *(f"include {i}" for i in includes)]

    def run(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        buffers: dict[int, np.ndarray],
        bytes_of: dict[int, bytes],
        constants: dict[int, bytes] | None = None,
        threadgroup: dict[int, int] | None = None,
        checked: bool = True,
    ) -> None:
        """Arrays of ``buffers`` are changed in place. If ``checked``, every access is."""
        text = [*self.head, *(["checked"] if checked else []), f"kernel {kernel}"]
        text += [f"grid {grid[0]} {grid[1]} {grid[2]}", f"threads {threads[0]} {threads[1]} {threads[2]}"]
        for index, array in buffers.items():
            path = self.folder / f"buffer{index}"
            path.write_bytes(array.tobytes())
            text.append(f"buffer {index} {path}")
        text += [f"bytes {index} {value.hex()}" for index, value in bytes_of.items()]
        text += [f"constant {index} {value.hex()}" for index, value in (constants or {}).items()]
        text += [f"threadgroup {index} {size}" for index, size in (threadgroup or {}).items()]
        done = subprocess.run(
            [tool("run_kernel")],
            input="\n".join(text),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for index, array in buffers.items():
            array[...] = np.frombuffer((self.folder / f"buffer{index}").read_bytes(), array.dtype).reshape(array.shape)


def softmax(x: np.ndarray) -> np.ndarray:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


# ---- MLX ----


@pytest.fixture
def mlx_kernels(mlx: Path, tmp_path: Path, environment: dict[str, str]) -> Callable[[str, list[str]], Kernels]:
    def make(header: str, instances: list[str]) -> Kernels:
        unit = next(u for u in foreign_mlx.UNITS if u.header == header)
        source = tmp_path / "source.metal"
        source.write_text(unit.source(instances))
        return Kernels(tmp_path, environment, source, [mlx])

    return make


def test_mlx_softmax(mlx_kernels: Callable[[str, list[str]], Kernels]) -> None:
    name = "softmax_single_row<half, float>"
    x = np.random.default_rng(1).normal(0, 3, (3, 301)).astype(np.float16)
    out = np.zeros_like(x)
    mlx_kernels("softmax.h", [name]).run(name, (3, 1, 1), (96, 1, 1), {0: x, 1: out}, {2: struct.pack("<i", 301)})
    # The sum is in float; an output is rounded to half once.
    np.testing.assert_allclose(out.astype(np.float64), softmax(x.astype(np.float64)), rtol=2e-3, atol=1e-7)


def test_mlx_quantised_matrix_vector(mlx_kernels: Callable[[str, list[str]], Kernels]) -> None:
    name = "affine_qmv_fast<float, 64, 4, 0>"
    rng = np.random.default_rng(2)
    columns, rows = 512, 16
    quants = rng.integers(0, 16, (rows, columns), dtype=np.uint32)
    scales, biases = (rng.normal(0, 1, (rows, columns // 64)).astype(np.float32) for _ in range(2))
    x = rng.normal(0, 1, columns).astype(np.float32)
    packed = (quants.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2).astype(np.uint32)
    y = np.zeros(rows, np.float32)
    none = bytes(8)
    mlx_kernels("quantized.h", [name]).run(
        name,
        (1, rows // 8, 1),
        (32, 2, 1),
        {0: packed, 1: scales, 2: biases, 3: x, 4: y},
        {5: struct.pack("<i", columns), 6: struct.pack("<i", rows), **dict.fromkeys(range(7, 15), none)},
    )
    weights = quants * scales.repeat(64, 1).astype(np.float64) + biases.repeat(64, 1)
    # Sums of 512 floats in another order.
    np.testing.assert_allclose(y, weights @ x, rtol=1e-4, atol=1e-3)


@pytest.mark.foreign
def test_mlx_row_sum_and_logsumexp(mlx_kernels: Callable[[str, list[str]], Kernels]) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, (4, 260)).astype(np.float32)
    out = np.zeros(4, np.float32)
    name = "logsumexp<float>"
    mlx_kernels("logsumexp.h", [name]).run(name, (4, 1, 1), (96, 1, 1), {0: x, 1: out}, {2: struct.pack("<i", 260)})
    reference = np.log(np.exp(x.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(out, reference, rtol=1e-5)


@pytest.mark.foreign
@pytest.mark.parametrize("unit", foreign_mlx.UNITS, ids=lambda u: u.header)
def test_mlx_header_compiles(
    unit: foreign_mlx.Unit, mlx: Path, tmp_path: Path, environment: dict[str, str], record_property: Callable[..., None]
) -> None:
    source = tmp_path / "source.metal"
    source.write_text(unit.source())
    assert (mlx / KERNELS / unit.header).exists()
    done = subprocess.run(
        [tool("mslc"), source, "-I", mlx], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]
    kernels = int(done.stdout.split()[-2])
    assert kernels >= len(unit.instances())
    record_property("kernels", kernels)


@pytest.mark.foreign
def test_every_mlx_header_with_kernels_is_tried(mlx: Path) -> None:
    """All but those for the matrix units of Metal 4 (``nax``: they need MetalPerformancePrimitives) and a macro."""
    folder = mlx / KERNELS
    found = {
        str(p.relative_to(folder))
        for p in folder.glob("**/*.h")
        if "[[kernel" in p.read_text() and "nax" not in p.name and p.name != "defines.h"
    }
    assert found == {u.header for u in foreign_mlx.UNITS}


# ---- llama.cpp ----


def llama_source(llama: Path, name: str, folder: Path) -> Path:
    """A file of kernels after the headers that llama.cpp's build puts before it."""
    text = (llama / "kernels" / name).read_text()
    headers = ["common.h", *(h for h in ("dequantize.h", "quantize.h") if f'"{h}"' in text)]
    path = folder / name
    path.write_text("".join(f'#include "{h}"\n' for h in headers) + text)
    return path


@pytest.fixture
def llama_kernels(llama: Path, tmp_path: Path, environment: dict[str, str]) -> Callable[[str], Kernels]:
    def make(name: str) -> Kernels:
        return Kernels(
            tmp_path, environment, llama_source(llama, name, tmp_path), [llama / "kernels", llama, llama.parent]
        )

    return make


@pytest.mark.foreign
def test_llama_rms_norm(llama_kernels: Callable[[str], Kernels]) -> None:
    rng = np.random.default_rng(4)
    rows, columns, eps = 3, 320, 1e-5
    x = rng.normal(0, 2, (rows, columns)).astype(np.float32)
    weight = rng.normal(1, 0.1, columns).astype(np.float32)
    y = np.zeros_like(x)
    row, plane = columns * 4, rows * columns * 4
    counts = (rows, 1, 1, *(1,) * 6)  # of rows, planes, volumes: of x, the weight and what is added
    strides = (row, 0, 0, plane, 0, 0, plane, 0, 0)
    args = struct.pack("<iiQQQf9i9Qf4x", columns, columns // 4, row, plane, plane, eps, *counts, *strides, 0.0)
    llama_kernels("norm.metal").run(
        "kernel_rms_norm_mul_f32_4",
        (rows, 1, 1),
        (64, 1, 1),
        {1: x, 2: weight, 4: y},
        {0: args, 3: bytes(16)},
        constants={1700: b"\0"},
        threadgroup={0: 32 * 4},
    )
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + eps) * weight
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.foreign
@pytest.mark.parametrize("simdgroups", [1, 2])
def test_llama_softmax(llama_kernels: Callable[[str], Kernels], simdgroups: int) -> None:
    """With a mask, a scale, and a sink per head.

    Between simdgroups, the kernel orders its threadgroup memory by a barrier with ``mem_none``, which orders no memory:
    the checks say so.
    """
    rng = np.random.default_rng(5)
    heads, rows, columns, scale = 2, 3, 100, 0.25
    x = rng.normal(0, 8, (heads, rows, columns)).astype(np.float32)
    mask = np.where(rng.random((rows, columns)) < 0.3, -np.inf, 0).astype(np.float16)
    sinks = rng.normal(0, 2, heads).astype(np.float32)
    y = np.zeros_like(x)
    row, plane = columns * 4, rows * columns * 4
    args = struct.pack("<iii4xQQQiii4xQQQQQQffffi4x", columns, rows, heads, row, plane, plane * heads,
                       rows, 1, 1, columns * 2, 0, 0, row, plane, plane * heads, scale, 0, 1, 1, 1)  # fmt: skip

    def run(checked: bool) -> None:
        llama_kernels("softmax.metal").run(
            "kernel_soft_max_f16",
            (rows, heads, 1),
            (32 * simdgroups, 1, 1),
            {1: x, 2: mask, 3: sinks, 4: y},
            {0: args},
            threadgroup={0: 32 * 4},
            checked=checked,
        )

    if simdgroups > 1:
        with pytest.raises(AssertionError, match="thread_race: kernel kernel_soft_max_f16"):
            run(checked=True)
    run(checked=simdgroups == 1)
    logits = np.concatenate([x * scale + mask, np.broadcast_to(sinks[:, None, None], (heads, rows, 1))], axis=2)
    np.testing.assert_allclose(y, softmax(logits.astype(np.float64))[..., :-1], rtol=1e-4, atol=1e-7)


@pytest.mark.foreign
@pytest.mark.parametrize(
    ("name", "simdgroups", "over_columns"), [("q4_K", 2, False), ("q6_K", 2, False), ("q8_0", 4, True)]
)
def test_llama_quantised_matrix_vector(
    llama_kernels: Callable[[str], Kernels], name: str, simdgroups: int, over_columns: bool
) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(6)
    rows, columns, rows_each = 12, 768, 2
    blocks = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    scales = {"q4_K": (0, 2), "q6_K": (size - 2,), "q8_0": (0,)}[name]  # where the halves are
    for at in scales:
        values = rng.uniform(0.01, 0.1, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = values[..., None].view(np.uint8)
    row = columns // block * size
    weights = gguf.dequantize(blocks.reshape(rows, row), kind).astype(np.float64)
    x = rng.normal(0, 1, columns).astype(np.float32)
    y = np.zeros(rows, np.float32)
    args = struct.pack("<iii4xQQQQiii4xQQQQiiihh", columns, rows, 1, size, row, row * rows, row * rows,
                       columns, 1, 1, 4, columns * 4, columns * 4, columns * 4, rows, 1, rows_each, 1, 1)  # fmt: skip
    short = [struct.pack("<h", v) for v in (simdgroups, 1, 1, 1, 1)]
    each = rows_each if over_columns else rows_each * simdgroups
    llama_kernels("mul_mv.metal").run(
        f"kernel_mul_mv_{name}_f32",
        (rows // each, 1, 1),
        (32, simdgroups, 1),
        {1: blocks, 2: x, 3: y},
        {0: args},
        constants=dict(zip(range(600, 605), short, strict=True)) | {605: b"\0"},
        threadgroup={0: 32 * 4 * rows_each},
    )
    # Sums of 768 floats in another order.
    np.testing.assert_allclose(y, weights @ x, rtol=1e-4, atol=2e-3)


# fmt: off
LLAMA_FILES = (
    "argsort", "binbcast", "conv", "fa_aux", "fa_f16", "fa_f32", "fa_q4_0", "fa_q4_1", "fa_q5_0", "fa_q5_1",
    "fa_q8_0", "fa_vec_f16", "fa_vec_f32", "fa_vec_q4_0", "fa_vec_q4_1", "fa_vec_q5_0", "fa_vec_q5_1",
    "fa_vec_q8_0", "gated_delta_net", "misc", "mul_mm", "mul_mv", "norm", "pool", "quantize", "reduce", "rope",
    "softmax", "solve_tri", "ssm", "tri", "unary", "upscale", "wkv",
)
# fmt: on


@pytest.mark.foreign
@pytest.mark.parametrize("name", LLAMA_FILES)
def test_llama_file_compiles(
    name: str, llama: Path, tmp_path: Path, environment: dict[str, str], record_property: Callable[..., None]
) -> None:
    source = llama_source(llama, f"{name}.metal", tmp_path)
    text = source.read_text()
    command = [tool("mslc"), source, "-D", "GGML_METAL_HAS_BF16=1"]
    for folder in (llama / "kernels", llama, llama.parent):
        command += ["-I", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    kernels = int(done.stdout.split()[-2])
    assert 0 < kernels <= text.count("kernel ")
    record_property("kernels", kernels)


@pytest.mark.foreign
def test_every_llama_file_is_tried(llama: Path) -> None:
    parts = {"fa_common", "fa_vec_common"}  # included by others
    assert {p.stem for p in (llama / "kernels").glob("*.metal")} - parts == set(LLAMA_FILES)
