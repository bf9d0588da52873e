"""The command ``metallic inspect``: what a file has, what it would take, and whether it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_support import LLAMA, run
from metallic_native.cli import main
from metallic_native.cli.model_facts import FILE_TYPES, peak_pages


def test_inspect_shows_everything() -> None:
    done = run("inspect", LLAMA, "--tensors")
    assert (done.returncode, done.stderr) == (0, "")
    reader = gguf.GGUFReader(LLAMA)
    for key in reader.fields:
        if not key.startswith("GGUF."):
            assert re.search(rf"^{re.escape(key)} ", done.stdout, re.MULTILINE)
    for tensor in reader.tensors:
        shape = " x ".join(str(length) for length in tensor.shape)
        assert re.search(rf"^{re.escape(tensor.name)} +{tensor.tensor_type.name} +{shape} ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert "Memory for 256 tokens" in done.stdout


def test_inspect_takes_the_model_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", LLAMA]) == 0
    assert main(["inspect", "-m", LLAMA]) == 0
    first, second = capsys.readouterr().out.split(f"{LLAMA}: GGUF")[1:]
    assert first == second
    assert main(["inspect", LLAMA, "--model", LLAMA]) == 2
    assert "named twice" in capsys.readouterr().err


def test_inspect_counts_what_the_file_has() -> None:
    values = json.loads(run("inspect", LLAMA, "--json", "--tensors").stdout)
    reader = gguf.GGUFReader(LLAMA)
    assert values["parameters"] == sum(int(np.prod(tensor.shape)) for tensor in reader.tensors)
    assert values["bytes"] == sum(tensor.n_bytes for tensor in reader.tensors)
    assert sum(entry["tensors"] for entry in values["tensor_types"].values()) == len(reader.tensors)
    assert {entry["name"] for entry in values["tensors"]} == {tensor.name for tensor in reader.tensors}
    assert values["metadata"]["tokenizer.ggml.tokens"]["length"] == 274
    assert values["config"]["block_count"] == 3
    assert values["supported"] is True


@pytest.mark.parametrize("kv_type", ["f16", "k=q8_0,v=q4_0", "f16,window:q4_0"])
def test_the_estimate_is_what_a_model_takes(kv_type: str) -> None:
    options = ("--context", "200", "--kv-type", kv_type, "--batch-tokens", "16", "--threads", "2")
    memory = json.loads(run("inspect", LLAMA, "--json", *options).stdout)["memory"]
    done = run("generate", "a", "-m", LLAMA, "-n", "500", "--ignore-eos", "--json", *options)
    used = json.loads(done.stdout)["memory"]
    for tag in ("weights", "kv", "activations"):
        assert used[tag]["peak"] == pytest.approx(memory[tag], rel=0.02), tag
    assert memory["total"] == memory["weights"] + memory["kv"] + memory["activations"]


def test_each_cache_group_is_shown_with_its_own_types() -> None:
    path = str(Path(LLAMA).with_name("gemma3.gguf"))
    options = ("--kv-type", "k=q8_0,v=q4_0,window:f16", "--context", "100")
    groups = json.loads(run("inspect", path, "--json", *options).stdout)["memory"]["groups"]
    types = {(bool(group["window"]), group["keys"], group["values"]) for group in groups}
    assert types == {(True, "f16", "f16"), (False, "q8_0", "q4_0")}
    shown = run("inspect", path, *options).stdout
    assert re.search(r"kv +[\d.]+ kB  window of 16 tokens: .* each, f16\n", shown)
    assert re.search(r"kv +[\d.]+ kB  all tokens: .* each, keys q8_0, values q4_0\n", shown)
    assert "window:" not in shown


def test_inspect_says_what_does_not_load() -> None:
    options = ("--weights", "auto", "--memory", "100kB", "--context", "100")
    done = run("inspect", LLAMA, *options)
    assert done.returncode == 0
    assert "this does not load: the memory budget of 100000 bytes is used up" in done.stderr
    assert json.loads(run("inspect", LLAMA, "--json", *options).stdout)["memory"]["refused"]
    assert run("generate", "a", "-m", LLAMA, "-n", "1", *options).returncode == 4


def test_inspect_says_what_it_cannot_do() -> None:
    done = run("inspect", LLAMA, "--device", "cpu", "--precision", "float16")
    assert (done.returncode, done.stdout) == (2, "")
    assert "float16" in done.stderr


@given(
    context=st.integers(1, 600),
    window=st.integers(0, 300),
    batch=st.integers(1, 128),
    page=st.sampled_from([1, 16, 32]),
)
def test_peak_pages_is_what_a_sequence_holds(context: int, window: int, batch: int, page: int) -> None:
    """Against the definition: a page is held for its tokens of the batch, and for those that the batch sees."""
    most = 0
    for start in range(0, context, batch):
        end = min(start + batch, context)
        oldest = 0 if window == 0 else max(0, start - window + 1)
        most = max(most, len({token // page for token in range(oldest, end)}))
    assert peak_pages(context, window, batch, page) == most


def test_inspect_of_a_model_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_name("nobody\x1b[31m")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("inspect", str(path))
    assert done.returncode == 0
    assert "This model does not run: architecture 'mamba' is not supported" in done.stdout
    assert "\x1b" not in done.stdout
    values = json.loads(run("inspect", str(path), "--json").stdout)
    assert (values["supported"], values["memory"], values["parameters"]) == (False, None, 32)
    assert "mamba" in values["reason"]


def test_file_types_are_those_of_the_format() -> None:
    names = {entry.value: entry.name for entry in gguf.LlamaFileType}
    assert {number: names[number].split("_", 1)[1].replace("ALL_", "") for number in FILE_TYPES} == FILE_TYPES
