"""Where weights are placed, and models whose layers are on two devices."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metallic_native as mn
from cli_support import LLAMA, run
from metallic_native import _native
from metallic_native.cli.model_facts import estimate_memory
from metallic_native.loading import ModelConfig, resolve_model

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.gguf"))
HAS_METAL = any(device["backend"] == "metal" for device in _native.list_devices())
GREEDY = mn.Sampling.greedy()
Load = Callable[..., mn.Model]

on_metal = [
    pytest.mark.device("metal"),
    pytest.mark.skipif(not HAS_METAL, reason="there is no Metal here"),
]


def bytes_of(path: str | Path, part: str = "") -> int:
    return sum(tensor.nbytes for tensor in _native.GgufModelFile(str(path)).tensors if part in tensor.name)


# ---- on any device ---------------------------------------------------------------------------------------------------


@pytest.mark.device
@pytest.mark.parametrize("weights", ["private", "shared", "mapped,blk.0=private", "blk.0-15=private,token_embd=shared"])
def test_copies_give_the_same_logits_and_come_back_after_eviction(load_golden: Load, weights: str) -> None:
    wanted = load_golden("llama").logits([1, 2, 3])
    model = load_golden("llama", weights=weights)
    np.testing.assert_array_equal(model.logits([1, 2, 3]), wanted)
    report = model.memory()
    copied = report.tags["weights"].current - report.mapped_bytes
    freed = model.evict_weights()
    assert 0 < freed <= copied
    assert model.memory().tags["weights"].current == report.tags["weights"].current - copied
    assert model.evict_weights() == 0
    np.testing.assert_array_equal(model.logits([1, 2, 3]), wanted)
    assert model.memory().tags["weights"].current == report.tags["weights"].current
    actions = model.memory().actions
    assert actions["evict_weights"] == actions["restore_weights"] == (1, freed)


@pytest.mark.device
@pytest.mark.parametrize("weights", ["private", "private,token_embd=shared", "mapped,blk.1-=private"])
def test_a_need_evicts_about_so_much(weights: str) -> None:
    options: dict[str, Any] = {"weights": weights, "batch_tokens": 32}
    with mn.load("demo", **options) as model:
        wanted = model.generate("Once upon a time", max_tokens=12, sampling=GREEDY).text
        held = model.memory()
        copied = held.tags["weights"].current - held.mapped_bytes
        freed = []
        for need in (1, 4_500_000, 1 << 40):
            before = model.memory().heap_bytes
            freed.append(model.evict_weights(need))
            assert before - model.memory().heap_bytes >= min(need, freed[-1])
            largest = max(heap.bytes for heap in held.heap_list)
            assert 0 < freed[-1] < need + largest
            assert model.generate("Once upon a time", max_tokens=12, sampling=GREEDY).text == wanted
            assert model.memory().tags["weights"].current == held.tags["weights"].current
        assert freed[0] < freed[1] <= freed[2] <= copied
        actions = model.memory().actions
        assert actions["evict_weights"] == actions["restore_weights"] == (3, sum(freed))
        assert model.evict_weights(0) == 0
        with pytest.raises(mn.RequestError, match="at_least"):
            model.evict_weights(-1)


@pytest.mark.device
def test_a_chat_goes_on_after_eviction(load_golden: Load) -> None:
    wanted = load_golden("llama").generate([1, 2, 3], max_tokens=20, sampling=GREEDY, ignore_eos=True).token_ids
    model = load_golden("llama", weights="private")
    cache = model.new_cache()
    first = model.generate([1, 2, 3], max_tokens=8, sampling=GREEDY, ignore_eos=True, cache=cache).token_ids
    assert model.evict_weights() > 0
    prompt = [1, 2, 3, *first]
    rest = model.generate(prompt, max_tokens=12, sampling=GREEDY, ignore_eos=True, cache=cache).token_ids
    assert first + rest == wanted


@pytest.mark.device
def test_mapped_weights_are_not_evicted(load_golden: Load) -> None:
    model = load_golden("llama")
    assert model.placement.weights == {"mapped": bytes_of(LLAMA)}
    assert model.evict_weights() == 0


@pytest.mark.device
@pytest.mark.parametrize(
    "weights", ["", "vram", "private,", "blk.=cpu", "blk.2-1=cpu", "blk.x=cpu", "=cpu", "a=b", "private,auto", "\0=cpu"]
)
def test_what_is_no_rule_is_refused(weights: str) -> None:
    with pytest.raises(mn.RequestError, match="mapped, private, shared or cpu"):
        mn.load(LLAMA, weights=weights)


@pytest.mark.device
@pytest.mark.parametrize("gpu_layers", [-1, 2**31, True, 1.0, "3"])
def test_layers_are_counted_in_whole_numbers(gpu_layers: Any) -> None:
    with pytest.raises(mn.RequestError, match="gpu_layers must be an integer between 0 and"):
        mn.load(LLAMA, gpu_layers=gpu_layers)
    with pytest.raises(mn.RequestError, match="weights must be rules of placement"):
        mn.load(LLAMA, weights=3)  # type: ignore[arg-type]


@pytest.mark.device
def test_the_decision_is_logged(load_golden: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "metallic_native"):
        model = load_golden("llama", weights="private,outptu=shared")
    assert "the placement rule outptu=shared concerns no tensor" in caplog.text
    assert f"weights: {model.placement.summary()}" in caplog.text
    assert model.placement.unmatched == ("outptu=shared",)


@pytest.mark.device
@pytest.mark.parametrize(
    ("name", "weights", "kv_type", "context", "memory"),
    [
        ("demo", "auto", "f32", 512, 17_000_000),
        ("demo", "auto", "f16", 64, 16_000_000),
        # What plans take decides here: weights, pages and arena alone would leave most layers on a device beside a CPU.
        ("demo", "auto", "f32", 512, 8_000_000),
        ("demo", "auto", "f32", 2048, 10_000_000),
        ("demo", "auto,output=private,blk.0=shared", "k=q8_0,v=q4_0", 512, 19_000_000),
        ("demo", "auto", "f16", 2048, None),
        ("demo", "auto", "f16", 2048, 200_000),
        ("gemma3", "auto", "f16,window:q4_0", 200, 8_000_000),
        ("gemma3", "auto,blk.1=cpu", "f32", 64, 9_500_000),
        ("gemma3", "auto", "f32", 64, 6_000_000),
        ("gemma3", "private", "q8_0", 64, 3_000_000),
        ("gemma3", "private", "f16", 64, 400_000),
    ],
)
def test_what_is_predicted_is_what_a_load_does(
    name: str, weights: str, kv_type: str, context: int, memory: int | None
) -> None:
    path = resolve_model("demo" if name == "demo" else GOLDENS / f"{name}.gguf")
    file = _native.GgufModelFile(str(path))
    config = ModelConfig.from_metadata(file.metadata)
    options: dict[str, Any] = {"kv_type": kv_type, "batch_tokens": 16, "threads": 1, "weights": weights}
    found = estimate_memory(file, config, context, **options, memory=memory)
    assert (found.refused is None) == (memory is None or memory > 400_000)
    if found.refused is not None:
        with pytest.raises(mn.OutOfMemory, match=re.escape(found.refused)):
            mn.load(path, context_length=context, memory_budget=memory, **options)
        return
    with mn.load(path, context_length=context, memory_budget=memory, **options) as model:
        assert model.placement == found.placement
        report = model.memory()
        assert report.tags["activations"].current == found.activations
        assert report.tags["weights"].current == found.weights
        groups = [(group.window, group.layers, group.page_bytes) for group in report.cache_groups]
        assert groups == [(group.window, group.layers, group.page_bytes) for group in found.groups]
        assert memory is None or report.heap_bytes <= memory


# ---- on the CPU alone ------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "options",
    [{"weights": "cpu"}, {"weights": "blk.0=cpu"}, {"gpu_layers": 1}, {"gpu_layers": 0}, {"weights": "auto"}],
)
def test_the_cpu_has_no_other_layers(load_golden: Load, options: dict[str, Any]) -> None:
    model = load_golden("llama", device="cpu", **options)
    assert [stage.device for stage in model.placement.stages] == ["cpu"]
    assert model.placement.weights == {"mapped": bytes_of(LLAMA)}
    np.testing.assert_array_equal(model.logits([1, 2, 3]), load_golden("llama", device="cpu").logits([1, 2, 3]))


@pytest.mark.cpu_only
def test_the_command_line_places_weights() -> None:
    done = run("inspect", LLAMA, "--device", "cpu", "--json", "--weights", "private,blk.1=shared")
    placement = json.loads(done.stdout)["placement"]
    assert [block["place"] for block in placement["blocks"]] == ["private", "shared", "private", "private"]
    blocks = {block["block"]: block["weights"] for block in placement["blocks"]}
    assert blocks[1] == {"shared": bytes_of(LLAMA, "blk.1.")}
    assert blocks[0] == {"private": bytes_of(LLAMA, "blk.0.")}
    shown = run("inspect", LLAMA, "--device", "cpu", "--weights", "private,nothing=cpu")
    assert "blocks 0 to 2  private" in shown.stdout
    assert "nothing=cpu" in shown.stderr

    done = run("generate", "x", "-m", LLAMA, "--device", "cpu", "--weights", "private", "--gpu-layers", "1", "-n", "2")
    assert done.returncode == 0, done.stderr
    for arguments, message in (
        (["--weights", "nowhere"], "there is no place 'nowhere'"),
        (["--gpu-layers", "-1"], "--gpu-layers"),
    ):
        for command in (["generate", "x", "-m", LLAMA], ["inspect", LLAMA]):
            done = run(*command, *arguments)
            assert done.returncode == 2
            assert message in done.stderr


# ---- layers on the host beside a device ------------------------------------------------------------------------------


class TestTwoDevices:
    pytestmark = on_metal

    @pytest.mark.parametrize("name", NAMES)
    def test_goldens_keep_their_logits_wherever_they_are_cut(self, load_golden: Load, name: str) -> None:
        golden = np.load(GOLDENS / f"{name}.npz")
        for options in ({"gpu_layers": 2}, {"weights": "private,blk.0.ffn_*=cpu,blk.1-=cpu"}):
            model = load_golden(name, device="metal", precision="float32", kv_type="f32", **options)
            assert {stage.device for stage in model.placement.stages} == {"metal", "cpu"}
            logits = model.logits(golden["tokens"].tolist(), all_positions=True)
            wanted = golden["logits"]
            assert np.abs(logits[golden["positions"]] - wanted).max() / np.abs(wanted).max() < 1e-4

    @pytest.mark.parametrize(
        "options",
        [
            {"gpu_layers": 0},
            {"gpu_layers": 1},
            {"gpu_layers": 4, "weights": "private"},
            {"gpu_layers": 99},
            {"weights": "blk.0-1=private,blk.2-=cpu"},
            {"weights": "blk.*.ffn_*=cpu"},
            {"weights": "token_embd=cpu"},
            {"weights": "auto", "memory_budget": 20_000_000},
        ],
    )
    def test_text_is_that_of_the_cpu(self, options: dict[str, Any]) -> None:
        def text(**where: Any) -> str:
            with mn.load(precision="float32", **where) as model:
                return model.generate("Once upon a time", max_tokens=24, sampling=GREEDY).text

        assert text(device="metal", **options) == text(device="cpu")

    def test_the_last_layers_are_the_devices(self, load_golden: Load) -> None:
        stages = load_golden("llama", device="metal", gpu_layers=2).placement.stages
        assert [(stage.device, stage.blocks) for stage in stages] == [("cpu", "blocks 0 to 1"), ("metal", "block 2")]
        stages = load_golden("llama", device="metal", gpu_layers=1).placement.stages
        assert [(stage.device, stage.blocks) for stage in stages] == [("cpu", "blocks 0 to 2"), ("metal", "no block")]
        model = load_golden("llama", device="metal", gpu_layers=0, precision="int8")
        assert model.device["backend"] == "cpu"

    def test_the_hosts_layers_round_nothing_where_the_devices_round_to_halves(self, load_golden: Load) -> None:
        if not next(d for d in _native.list_devices() if d["backend"] == "metal")["half_arithmetic"]:
            pytest.skip("this GPU has no half arithmetic")
        model = load_golden("llama", device="metal", gpu_layers=2, precision="float16")
        wanted = load_golden("llama", device="cpu", precision="float32").logits([1, 2, 3])
        np.testing.assert_allclose(model.logits([1, 2, 3]), wanted, atol=0.02 * np.abs(wanted).max())

    def test_pages_are_counted_on_both(self, load_golden: Load) -> None:
        whole, split = (load_golden("llama", device="metal", gpu_layers=layers) for layers in (99, 2))
        caches = [whole.new_cache(), split.new_cache()]
        for model, cache in zip((whole, split), caches, strict=True):
            model.generate([1] * 40, max_tokens=2, sampling=GREEDY, ignore_eos=True, cache=cache)
        assert [group.layers for group in split.memory().cache_groups] == [1, 2]
        assert [group.layers for group in whole.memory().cache_groups] == [3]
        assert split.native.kv_bytes_per_token == whole.native.kv_bytes_per_token
        for group in split.memory().cache_groups:
            assert group.pages_in_use == whole.memory().cache_groups[0].pages_in_use
        assert split.memory().mapped_bytes == whole.memory().mapped_bytes

    def test_auto_fills_the_budget_from_the_last_block_on(self) -> None:
        seen = []
        options: dict[str, Any] = {"batch_tokens": 16, "kv_type": "f32", "threads": 1, "context_length": 512}
        for budget in (8_000_000, 9_500_000, 11_000_000, 40_000_000):
            with mn.load(device="metal", weights="auto", memory_budget=budget, **options) as model:
                placement = model.placement
                assert model.memory().heap_bytes <= budget
                # The budget has room for the pages of the whole context, on both devices.
                model.new_cache().reserve(512)
            assert placement.automatic
            assert placement.budget == budget
            places = [block.place for block in placement.blocks if block.block is not None]
            assert places == sorted(places), "the host's blocks are the first"
            on_device = [b for b in placement.blocks if b.place != "cpu"]
            used = sum(block.kv + sum(block.weights.values()) for block in on_device)
            assert placement.reserved + used <= budget
            seen.append(places.count("cpu"))
        assert seen == sorted(seen, reverse=True)
        assert seen[0] > seen[1] > seen[2] > seen[-1] == 0
