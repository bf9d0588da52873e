"""The native GGUF reader against files written by gguf-py, against real vocabularies, and against damaged files."""

from __future__ import annotations

import gc
import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metallic_native import errors
from metallic_native._native import GgufModelFile

VOCABULARIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "vocab"
VOCABULARY_NAMES = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]
Bytes = npt.NDArray[np.uint8]
ValueType = gguf.GGUFValueType

SCALARS: list[tuple[gguf.GGUFValueType, int | float | bool | str]] = [
    (ValueType.UINT8, 255),
    (ValueType.INT8, -128),
    (ValueType.UINT16, 65535),
    (ValueType.INT16, -32768),
    (ValueType.UINT32, 2**32 - 1),
    (ValueType.INT32, -(2**31)),
    (ValueType.UINT64, 2**64 - 1),
    (ValueType.INT64, -(2**63)),
    (ValueType.FLOAT32, 0.15625),
    (ValueType.FLOAT64, 0.1),
    (ValueType.BOOL, True),
    (ValueType.BOOL, False),
    (ValueType.STRING, "grüße, 世界 🌍\0 after a NUL"),
    (ValueType.STRING, ""),
]
ARRAYS: list[tuple[gguf.GGUFValueType, str, list[int] | list[float] | list[bool]]] = [
    (ValueType.UINT8, "uint8", [0, 255]),
    (ValueType.INT8, "int8", [-128, 127]),
    (ValueType.UINT16, "uint16", [0, 65535, 1]),
    (ValueType.INT16, "int16", [-32768, 32767]),
    (ValueType.UINT32, "uint32", [0, 2**32 - 1]),
    (ValueType.INT32, "int32", [-(2**31), 2**31 - 1]),
    (ValueType.UINT64, "uint64", [0, 2**64 - 1]),
    (ValueType.INT64, "int64", [-(2**63), 2**63 - 1]),
    (ValueType.FLOAT32, "float32", [0.5, -1.25, 3.0]),
    (ValueType.FLOAT64, "float64", [0.1, -0.2]),
    (ValueType.BOOL, "bool", [True, False, True]),
]
SUPPORTED = ["F32", "F16", "BF16", "I32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K"]
SUPPORTED += ["Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None], split_max_tensors: int = 0) -> None:
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_tensor(rng: np.random.Generator, name: str, shape: Sequence[int]) -> Bytes:
    """Raw bytes of a tensor of type ``name``; ``shape`` in NumPy's order, its last dimension counted in blocks."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return rng.integers(0, 256, (*shape[:-1], shape[-1] * block_bytes), dtype=np.uint8)


def write_tensors(path: Path, alignment: int | None = None, split_max_tensors: int = 0) -> dict[str, Bytes]:
    """A file with one tensor of every supported type, and its tensors' bytes by name."""
    rng = np.random.default_rng(7)
    shapes = [(3,), (2, 1), (1, 3, 2), (2, 1, 3, 1)]
    tensors = {f"{i}.{name}": random_tensor(rng, name, shapes[i % len(shapes)]) for i, name in enumerate(SUPPORTED)}

    def fill(writer: gguf.GGUFWriter) -> None:
        if alignment is not None:
            writer.add_custom_alignment(alignment)
        for name, data in tensors.items():
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[name.split(".")[1]])

    write(path, fill, split_max_tensors)
    return tensors


def add_all_values(writer: gguf.GGUFWriter) -> None:
    for i, (value_type, value) in enumerate(SCALARS):
        writer.add_key_value(f"scalar.{i}", value, value_type)
    for i, (value_type, _, values) in enumerate(ARRAYS):
        writer.add_key_value(f"array.{i}", values, ValueType.ARRAY, value_type)
    writer.add_array("strings", ["", "a", "Ġtoken", "two words", "x" * 5000])


def test_scalars_and_strings_come_back(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", add_all_values)
    metadata = GgufModelFile(str(tmp_path / "m.gguf")).metadata
    assert metadata["general.architecture"] == "llama"
    for i, (_, value) in enumerate(SCALARS):
        assert metadata[f"scalar.{i}"] == value
        assert type(metadata[f"scalar.{i}"]) is type(value)
    assert metadata["strings"] == ["", "a", "Ġtoken", "two words", "x" * 5000]
    assert len(metadata) == 1 + len(SCALARS) + len(ARRAYS) + 1


def test_numeric_arrays_come_back_with_their_type(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", add_all_values)
    metadata = GgufModelFile(str(tmp_path / "m.gguf")).metadata
    for i, (_, dtype, values) in enumerate(ARRAYS):
        array = metadata[f"array.{i}"]
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.dtype(dtype)
        assert array.tolist() == values


def test_strings_that_are_not_utf8_survive(tmp_path: Path) -> None:
    raw = b"\xff\x00\xc3(\xed\xa0\x80"
    tensor_name = b"w\xfe".decode("utf-8", "surrogateescape")

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_key_value("raw", raw, ValueType.STRING)
        writer.add_key_value("raws", [raw, b"", b"\x80"], ValueType.ARRAY, ValueType.STRING)
        writer.add_tensor("w?", np.arange(4, dtype=np.float32))

    path = tmp_path / "m.gguf"
    write(path, fill)
    path.write_bytes(path.read_bytes().replace(b"w?", b"w\xfe"))
    model = GgufModelFile(str(path))
    text = model.metadata["raw"]
    assert isinstance(text, str)
    assert text.encode("utf-8", "surrogateescape") == raw
    texts = model.metadata["raws"]
    assert isinstance(texts, list)
    assert [item.encode("utf-8", "surrogateescape") for item in texts] == [raw, b"", b"\x80"]
    assert [tensor.name for tensor in model.tensors] == [tensor_name]
    assert model.tensor_data(tensor_name).view(np.float32).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_tensors_of_every_type_come_back(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "m.gguf"
    expected = write_tensors(path, alignment)
    model = GgufModelFile(str(path))
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert [tensor.name for tensor in model.tensors] == list(expected)
    assert model.paths == [str(path)]
    for tensor in model.tensors:
        data = model.tensor_data(tensor.name)
        assert tensor.dtype == tensor.name.split(".")[1]
        assert tensor.shape == tuple(reference[tensor.name].shape.tolist())
        assert tensor.offset == reference[tensor.name].data_offset
        assert tensor.offset % (alignment or 32) == 0
        assert tensor.nbytes == data.nbytes == expected[tensor.name].nbytes
        assert tensor.file == 0
        np.testing.assert_array_equal(data, expected[tensor.name].reshape(-1))
    assert repr(model.tensors[0]).startswith("TensorInfo(name='0.F32', dtype='F32', shape=(3,)")


def test_tensor_data_is_a_read_only_view_that_outlives_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    expected = write_tensors(path)
    model = GgufModelFile(str(path))
    data, again = model.tensor_data("8.Q8_0"), model.tensor_data("8.Q8_0")
    assert data.dtype == np.uint8
    assert data.__array_interface__["data"] == again.__array_interface__["data"]
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1
    os.remove(path)
    del model, again
    gc.collect()
    np.testing.assert_array_equal(data, expected["8.Q8_0"].reshape(-1))


def test_split_models_open_from_any_part(tmp_path: Path) -> None:
    expected = write_tensors(tmp_path / "m.gguf", split_max_tensors=4)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 5
    for path in paths:
        model = GgufModelFile(str(path))
        assert model.paths == [str(part) for part in paths]
        assert model.metadata["general.architecture"] == "llama"
        assert [tensor.name for tensor in model.tensors] == list(expected)
        assert [tensor.file for tensor in model.tensors] == [i // 4 for i in range(len(expected))]
        for name, data in expected.items():
            np.testing.assert_array_equal(model.tensor_data(name), data.reshape(-1))


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m.gguf", split_max_tensors=6)
    first, second, third = sorted(tmp_path.iterdir())
    second_bytes = second.read_bytes()
    second.unlink()
    with pytest.raises(errors.ModelFormatError, match="part 2 of 3") as missing:
        GgufModelFile(str(first))
    assert missing.value.where == "split.count"
    second.write_bytes(third.read_bytes())
    with pytest.raises(errors.ModelFormatError, match="part 2") as foreign:
        GgufModelFile(str(first))
    assert foreign.value.file == str(second)
    assert foreign.value.where == "split.no"
    second.write_bytes(second_bytes)
    assert len(GgufModelFile(str(third)).tensors) == len(SUPPORTED)


def test_paths_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "grün 模型.gguf"
    write_tensors(path)
    assert GgufModelFile(str(path)).paths == GgufModelFile(path).paths == [str(path)]
    with pytest.raises(errors.Error, match="No such file"):
        GgufModelFile(str(tmp_path / "missing.gguf"))
    with pytest.raises(errors.ModelFormatError, match="directory"):
        GgufModelFile(str(tmp_path))
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(errors.ModelFormatError, match="empty"):
        GgufModelFile(str(tmp_path / "empty.gguf"))


def test_errors_name_file_place_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tensors(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(errors.ModelFormatError, match="incomplete download") as truncated:
        GgufModelFile(str(path))
    assert truncated.value.file == str(path)
    assert truncated.value.where == "16.MXFP4"
    at = whole.index(b"3.I32") + 5 + 4 + 4 * 8
    path.write_bytes(whole[:at] + struct.pack("<I", 16) + whole[at + 4 :])
    with pytest.raises(errors.UnsupportedModelError, match=r"3\.I32.*IQ2_XXS"):
        GgufModelFile(str(path))
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    with pytest.raises(errors.UnsupportedModelError, match="version 1"):
        GgufModelFile(str(path))
    path.write_bytes(whole)
    model = GgufModelFile(str(path))
    with pytest.raises(errors.RequestError, match=r"no\.such"):
        model.tensor_data("no.such")
    os.truncate(path, 1000)
    with pytest.raises(errors.ModelFormatError, match="truncated while in use"):
        model.tensor_data("0.F32")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(errors.UnsupportedModelError, match="big-endian"):
        GgufModelFile(str(tmp_path / "big.gguf"))


def walk(path: Path) -> None:
    """Opens a file that may be damaged, and reads everything of it."""
    try:
        model = GgufModelFile(str(path))
    except errors.Error:
        return
    assert all(isinstance(key, str) for key in model.metadata)
    for tensor in model.tensors:
        data = model.tensor_data(tensor.name)
        assert data.nbytes == tensor.nbytes
        assert int(data[0]) + int(data[-1]) >= 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=9)), max_size=4),
    cut=st.none() | st.integers(0, 2**16),
)
def test_damaged_files_raise_or_can_be_read(tmp_path: Path, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():

        def fill(writer: gguf.GGUFWriter) -> None:
            add_all_values(writer)
            writer.add_tensor("a", np.arange(64, dtype=np.float32))
            writer.add_tensor("b", np.arange(64, dtype=np.float16).reshape(4, 16))

        write(whole, fill)
    content = bytearray(whole.read_bytes())
    for position, replacement in edits:
        start = position % len(content)
        content[start : start + len(replacement)] = replacement
    if cut is not None:
        del content[cut % len(content) :]
    damaged = tmp_path / "damaged.gguf"
    damaged.unlink(missing_ok=True)
    damaged.write_bytes(content)
    walk(damaged)


def vocabulary(name: str) -> Path:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


def string_array(content: bytes, key: str) -> list[str]:
    """A string array, read without any GGUF library."""
    encoded = key.encode()
    at = content.index(struct.pack("<Q", len(encoded)) + encoded) + 8 + len(encoded)
    value_type, element_type, count = struct.unpack_from("<IIQ", content, at)
    assert (value_type, element_type) == (9, 8)
    at += 16
    strings = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, at)
        strings.append(content[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return strings


@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_real_vocabularies(name: str) -> None:
    path = vocabulary(name)
    model = GgufModelFile(str(path))
    metadata = model.metadata
    content = path.read_bytes()
    assert model.tensors == []
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens == string_array(content, "tokenizer.ggml.tokens")
    token_types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(token_types, np.ndarray)
    assert len(tokens) == len(token_types) > 30000
    if "tokenizer.ggml.merges" in metadata:
        assert metadata["tokenizer.ggml.merges"] == string_array(content, "tokenizer.ggml.merges")


def fastest(action: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_a_large_vocabulary_opens_fast() -> None:
    path = vocabulary("llama-bpe")
    content = path.read_bytes()
    model = GgufModelFile(str(path))
    keys = ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"]
    # A Python loop over the same 408,403 strings stands for the machine's speed.
    loop = fastest(lambda: [string_array(content, key) for key in keys])
    assert fastest(lambda: GgufModelFile(str(path))) < loop / 6
    assert fastest(lambda: model.metadata) < loop
