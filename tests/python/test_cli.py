"""The command ``metallic``: output, exit codes, pipes, signals and terminals."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import metallic_native as mn
from cli_support import COMMAND, LLAMA, PLAIN, Terminal, run, with_long_context
from hub_server import COMMIT, HubServer
from metallic_native import _native
from metallic_native.cli import main
from metallic_native.cli.app import app
from metallic_native.cli.generate import _Run
from metallic_native.cli.options import parse_size


@pytest.fixture
def long_llama(tmp_path: Path) -> str:
    return with_long_context(tmp_path / "long.gguf")


# --- the command line itself ------------------------------------------------------------------------------------


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"metallic {mn.__version__}\n", "")


def test_help_of_all_commands() -> None:
    runner = CliRunner()
    overview = runner.invoke(app, ["--help"])
    assert overview.exit_code == 0
    for line in ("0    success", "3    no such model", "130  interrupted"):
        assert line in overview.output
    for command in ("generate", "chat", "inspect", "devices", "bench", "pull"):
        assert command in overview.output
        result = runner.invoke(app, [command, "-h"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: metallic {command}")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: metallic")


def test_starting_imports_nothing_heavy() -> None:
    code = (
        "import sys, typer, metallic_native; before = set(sys.modules)\n"
        "from metallic_native.cli import main; main(['--help'])\n"
        "print(*sorted(name for name in set(sys.modules) - before if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "jinja2", "tokenizers", "huggingface_hub", "rich", "httpx", "requests", "readline"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--nonsense"], 2, r"[Nn]o such option"),
        (["nonsense"], 2, r"No such command 'nonsense'"),
        (["generate", "x", "--nonsense"], 2, r"[Nn]o such option.*see metallic generate --help"),
        (["generate", "x", "-n", "many"], 2, r"Invalid value for '--max-tokens'"),
        (["generate", "x", "-m", LLAMA, "-n", "0"], 2, r"max_tokens must be at least 1"),
        (["generate", "x", "-m", LLAMA, "--top-p", "3"], 2, r"top_p = 3.0 is out of range"),
        (["generate", "x", "-m", LLAMA, "--stop", ""], 2, r"stop must be strings that are not empty"),
        (["generate", "x", "-m", LLAMA, "--memory", "lots"], 2, r"'lots' is no amount of memory"),
        (["inspect", LLAMA, "--memory", "0"], 2, r"'0' is no amount of memory"),
        (["inspect", LLAMA, "--memory", "999999999TB"], 2, r"'999999999TB' is no amount of memory"),
        (
            ["generate", "x", "-m", LLAMA, "--kv-type", "q9"],
            2,
            '"q9" is no type of keys and values; kv_type is f16, bf16, ',
        ),
        (
            ["generate", "x", "-m", LLAMA, "--precision", "int4"],
            2,
            r"'int4' is none of auto, float32, float16, bfloat16",
        ),
        (
            ["generate", "x", "-m", LLAMA, "--device", "cpu", "--precision", "Float16"],
            2,
            r"cpu has no matrix products in float16; it has float32, int8",
        ),
        (["generate", "x", "-m", LLAMA, "--device", "abacus"], 2, r"'abacus' is none of auto, cpu, metal"),
        (
            ["generate", "x", "-m", LLAMA, "--context", "257"],
            2,
            r"context_length must lie between 1 and the model's 256",
        ),
        (["generate", "x" * 300, "-m", LLAMA], 2, r"the prompt has \d+ tokens, the context holds 256"),
        (
            ["generate", "x", "-m", LLAMA, "--greedy", "--temp", "1"],
            2,
            r"--greedy and --temperature exclude each other",
        ),
        (["bench", "-m", LLAMA, "-p", "0", "-n", "0"], 2, r"nothing to measure"),
        (["bench", "-m", LLAMA, "-p", "1,x"], 2, r"'1,x' is no list of token counts"),
        (["bench", "-m", LLAMA, "-p", "257"], 2, r"257 tokens are more than the context of 256"),
        (["inspect", LLAMA, "--context", "257"], 2, r"--context 257 is more than the model's 256 tokens"),
        (["pull", "no-repository"], 2, r"'no-repository' is no repository: write owner/name"),
        (["pull"], 2, r"Missing argument"),
        (["generate", "x", "-m", "missing.gguf"], 3, r"missing\.gguf: no such file"),
        (["generate", "x", "-m", __file__], 3, r"test_cli\.py: .*not a GGUF file"),
        (["inspect", "missing.gguf"], 3, r"missing\.gguf: no such file"),
        (["bench", "-m", "missing.gguf"], 3, r"missing\.gguf: no such file"),
        (["chat", "-m", "missing.gguf"], 3, r"missing\.gguf: no such file"),
        (["generate", "x", "-m", LLAMA, "--memory", "100kB"], 4, r"bytes needed by activations.*--batch-tokens"),
    ],
)
def test_errors_are_one_line_and_have_a_code(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"metallic: error: .*{message}.*\n", captured.err)


def test_debug_shows_the_traceback() -> None:
    for done in (run("--debug", "inspect", "missing.gguf"), run("inspect", "missing.gguf", METALLIC_DEBUG="1")):
        assert done.returncode == 3
        assert done.stderr.startswith("Traceback")
        assert "metallic: error: missing.gguf: no such file" in done.stderr
    assert "Traceback" not in run("inspect", "missing.gguf", METALLIC_DEBUG="0").stderr


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr("metallic_native.engine.load", fail)
    assert main(["generate", "x", "-m", LLAMA]) == 1
    assert re.fullmatch(r"metallic: error: KeyError: 'nothing' \(.*--debug.*\)\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2GB", 2 * 10**9), ("2 gb", 2 * 10**9), ("2GiB", 2 << 30), ("2g", 2 << 30), ("1.5k", 1536), ("7B", 7)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "GB", "1 XB", "1e9", "1..5", "nan", "inf", "1" * 40, "0", "0.5", "9999999TB", "\u0663MB"]
)
def test_amounts_of_memory_that_make_no_sense(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)


# --- generate ---------------------------------------------------------------------------------------------------


def expected(prompt: str, count: int, **options: Any) -> mn.Generation:
    with mn.load(LLAMA) as model:
        return model.generate(prompt, count, mn.Sampling.greedy(**options), ignore_eos=True)


def test_generate_prints_the_text_alone_in_a_pipe() -> None:
    done = run("generate", "the thing", "-m", LLAMA, "-n", "12", "--greedy", "--ignore-eos")
    text = expected("the thing", 12).text
    assert done.returncode == 0
    assert done.stdout == text + ("" if text.endswith("\n") else "\n")
    speeds, memory = done.stderr.splitlines()
    assert re.search(r"prompt: \d+ tokens, [\d.]+ tok/s; generated: 12 tokens, [\d.]+ tok/s \(end: length\);", speeds)
    assert re.search(r"weights [\d.]+ kB .*mapped.*, kv [\d.]+ kB, activations [\d.]+ [kM]B.*; seed \d+", memory)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_generate_reads_the_prompt_from_stdin(arguments: list[str]) -> None:
    done = run("generate", *arguments, "-m", LLAMA, "-n", "5", "--greedy", "--json", stdin="ein Gruß\nhier\n")
    assert json.loads(done.stdout)["prompt"] == "ein Gruß\nhier"
    assert done.stderr == ""


def test_generate_takes_bytes_that_are_no_text() -> None:
    done = run("generate", "-m", LLAMA, "-n", "2", "-q", stdin=b"\xff\xfe\0")
    assert (done.returncode, done.stderr) == (0, "")


def test_generate_uses_the_demo_model_by_default() -> None:
    done = run("generate", "Once upon a time", "-n", "20", "--json")
    if done.returncode == 3 and "without the demo model" in done.stderr:
        pytest.skip("the package was built without the demo model")
    values = json.loads(done.stdout)
    assert values["model"].endswith("demo.gguf")
    assert 1 <= values["stats"]["completion_tokens"] <= 20
    assert values["text"].strip()


def test_generate_echoes_if_asked() -> None:
    common = ["generate", "the thing", "-m", LLAMA, "-n", "4", "--greedy", "-q"]
    assert run(*common, "--echo").stdout == "the thing" + run(*common).stdout


def test_generate_json() -> None:
    done = run("generate", "the", "-m", LLAMA, "-n", "6", "--greedy", "--ignore-eos", "--json", "--logprobs", "2")
    values = json.loads(done.stdout)
    wanted = expected("the", 6, logprobs=2)
    assert done.stderr == ""
    assert values["text"] == wanted.text
    assert values["token_ids"] == wanted.token_ids
    assert values["finish_reason"] == "length"
    assert values["precision"] == "float32"
    assert values["device"] in [device["backend"] for device in _native.list_devices()]
    assert values["stats"]["completion_tokens"] == 6
    assert values["stats"]["tokens_per_second"] > 0
    assert values["memory"]["weights"]["peak"] > 0
    assert [entry["id"] for entry in values["logprobs"]] == wanted.token_ids
    assert wanted.logprobs is not None
    for entry, logprob in zip(values["logprobs"], wanted.logprobs, strict=True):
        assert math.isclose(entry["logprob"], logprob, abs_tol=1e-5)
        assert len(entry["top"]) == 2
        assert entry["top"][0]["id"] == entry["id"]  # the greedy choice


def test_generate_shows_logprobs_after_the_text() -> None:
    done = run("generate", "the", "-m", LLAMA, "-n", "3", "--greedy", "--ignore-eos", "--logprobs", "1", "-q")
    wanted = expected("the", 3, logprobs=1)
    assert wanted.logprobs is not None
    lines = done.stderr.splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(wanted.logprobs, abs=1e-3)


def test_generate_is_repeatable_by_its_seed() -> None:
    common = ["generate", "the", "-m", LLAMA, "-n", "20", "--temp", "1.5", "--top-k", "0", "--json"]
    first = json.loads(run(*common).stdout)
    again = json.loads(run(*common, "--seed", str(first["seed"])).stdout)
    assert again["token_ids"] == first["token_ids"]
    other = json.loads(run(*common, "--seed", str(first["seed"] + 1)).stdout)
    assert other["token_ids"] != first["token_ids"]


def test_generate_stops_where_it_is_told() -> None:
    whole = expected("the", 40).text
    stop = next(c for c in whole[3:] if c.isascii() and c.isprintable())
    common = ["generate", "the", "-m", LLAMA, "-n", "40", "--greedy", "--ignore-eos", "--json"]
    done = run(*common, "--stop", "not to be found", "--stop", stop)
    values = json.loads(done.stdout)
    assert values["text"] == whole[: whole.index(stop)]
    assert values["finish_reason"] == "stop"


def test_generate_without_memory_for_the_prompt_prints_nothing(long_llama: str) -> None:
    large = ["--batch-tokens", "16384"]

    def inspected(*options: str) -> Any:
        return json.loads(run("inspect", long_llama, *large, *options, "--json").stdout)["memory"]

    memory = inspected()["activations"] + 1_000_000  # the prompt's keys and values are 240 bytes a token
    while inspected("--memory", str(memory))["refused"]:  # a device may take more than activations
        memory += 250_000
    done = run("generate", "-m", long_llama, *large, "--memory", str(memory), stdin="the thing " * 3000)
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(r"metallic: error: the keys and values of .* what would fit: .*more --memory\n", done.stderr)


def test_generate_until_the_context_is_full() -> None:
    done = run("generate", "the thing", "-m", LLAMA, "-n", "-1", "-c", "20", "--ignore-eos", "--json")
    values = json.loads(done.stdout)
    assert values["finish_reason"] == "context"
    assert values["stats"]["prompt_tokens"] + values["stats"]["completion_tokens"] == 21


def test_generate_shows_a_memory_report() -> None:
    arguments = ["generate", "Once upon a time", "-m", LLAMA, "-n", "40", "--ignore-eos", "--greedy", "-q"]
    plain, done = run(*arguments), run(*arguments, "--memory-report")
    assert done.returncode == 0
    assert done.stdout == plain.stdout
    assert plain.stderr == ""
    for title in ("Memory by tag", "Keys and values, pages of", "Heaps: ", "Owners of what", "No memory pressure"):
        assert title in done.stderr
    cells = {line.split()[0]: line.split() for line in done.stderr.splitlines() if line.strip()}
    assert {"weights", "kv", "activations", "staging", "kv/group.0"} <= set(cells)
    assert cells["kv"][1] != "0"  # of the end of the generation, when it still had its pages


def test_generate_puts_a_memory_report_into_json() -> None:
    arguments = ["generate", "x", "-m", LLAMA, "-n", "40", "--ignore-eos", "--greedy", "--json"]
    assert "memory_report" not in json.loads(run(*arguments).stdout)
    report = json.loads(run(*arguments, "--memory-report").stdout)["memory_report"]
    assert report["cache_groups"][0]["pages_in_use"] == math.ceil(40 / report["page_tokens"])
    assert sum(heap["bytes"] for heap in report["heap_list"]) == report["heap_bytes"]
    assert sum(owner["bytes"] for owner in report["owners"]) <= report["heap_bytes"]
    assert report["events"] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("memory.gif", r"ends with \.svg or \.png"), ("missing/memory.svg", r"no folder .*missing|pip install")],
)
def test_generate_refuses_a_plot_before_it_loads(tmp_path: Path, name: str, message: str) -> None:
    done = run("generate", "x", "-m", "missing.gguf", "--memory-plot", str(tmp_path / name))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert not (tmp_path / name).exists()


def test_generate_draws_memory_over_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, start in (("memory.svg", b"<?xml"), ("memory.png", b"\x89PNG")):
        done = run("generate", "x", "-m", LLAMA, "-n", "20", "-q", "--memory-plot", str(tmp_path / name))
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / name).read_bytes().startswith(start)


def test_chat_shows_memory_when_asked(tmp_path: Path) -> None:
    done = run("chat", "-n", "5", "--greedy", stdin="Tell me a story.\n/memory\n")
    assert done.returncode == 0
    assert "Memory by tag" in done.stderr
    assert "kv/group.0" in done.stderr


def test_evicted_pages_are_saved_or_computed_again(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("auto", "save", "compress", "compress-q4_0", "Recompute"):
        assert run("generate", "x", "-m", LLAMA, "-n", "2", "--eviction", name).returncode == 0
    assert main(["generate", "x", "--eviction", "never"]) == 2
    assert "'never' is none of auto, save, compress, compress-q4_0, recompute" in capsys.readouterr().err


def test_generate_survives_an_output_that_is_not_utf8() -> None:
    done = run("generate", "é", "-m", LLAMA, "-n", "3", "--echo", "-q", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("?")


def test_a_reader_that_leaves_ends_the_command_quietly(long_llama: str) -> None:
    arguments = [*COMMAND, "generate", "the", "-m", long_llama, "-n", "-1", "--ignore-eos"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=PLAIN) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def interrupted(model: str, *arguments: str, after_bytes: int = 0, after_seconds: float = 0) -> tuple[bytes, str]:
    """What a generation wrote that got a Ctrl-C after so many bytes, and so many seconds after it opened the model."""
    command = [*COMMAND, "generate", "the", "-m", model, "-n", "-1", "--ignore-eos", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=PLAIN) as process:
        assert process.stdout is not None
        first = process.stdout.read(after_bytes)
        mapped = Path(f"/proc/{process.pid}/maps")
        if mapped.exists():
            while model not in mapped.read_text():
                time.sleep(0.02)
        else:
            time.sleep(3)
        time.sleep(after_seconds)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    return first + rest, errors.decode()


def test_ctrl_c_keeps_what_was_generated(long_llama: str) -> None:
    written, errors = interrupted(long_llama, after_bytes=20)
    assert len(written) > 20
    assert written.endswith(b"\n")
    assert "(end: interrupted)" in errors


def test_ctrl_c_keeps_what_was_generated_also_as_json(long_llama: str) -> None:
    for seconds in (0, 1, 2, 4, 8, 16):  # nothing tells when the first token is there
        written, _ = interrupted(long_llama, "--json", after_seconds=seconds)
        values = json.loads(written) if written else None
        if values is not None and values["token_ids"]:
            break
    assert values is not None
    assert values["finish_reason"] == "interrupted"
    assert values["stats"]["completion_tokens"] == len(values["token_ids"]) > 0


def test_a_token_that_ctrl_c_took_away_is_not_counted() -> None:
    run = _Run(cast("mn.Model", None), "the", mn.Sampling())

    def stream() -> Iterator[mn.Chunk]:
        for token in range(3):
            run.stats.completion_tokens += 1
            if token == 2:
                raise KeyboardInterrupt
            yield mn.Chunk("a", token)

    assert run.consume(stream(), show=False, ends_line=True)
    assert run.stats.completion_tokens == 2


# --- devices, bench ---------------------------------------------------------------------------------------------


def test_devices() -> None:
    found = json.loads(run("devices", "--json").stdout)
    assert found == _native.list_devices()
    assert found[-1]["backend"] == "cpu"
    assert found[-1]["threads"] >= 1
    table = run("devices")
    assert table.returncode == 0
    for device in found:
        assert re.search(rf"^{device['backend']} ", table.stdout, re.MULTILINE)


def test_bench_json() -> None:
    done = run("bench", "-m", LLAMA, "-p", "16,32", "-n", "8", "-r", "3", "--kv-type", "q8_0", "--json")
    values = json.loads(done.stdout)
    assert [test["test"] for test in values["tests"]] == ["pp16", "pp32", "tg8"]
    for test in values["tests"]:
        speeds = [test["tokens"] / nanoseconds * 1e9 for nanoseconds in test["samples_ns"]]
        assert len(speeds) == 3
        assert test["samples_ts"] == pytest.approx(speeds, rel=1e-3)
        assert test["avg_ts"] == pytest.approx(np.mean(speeds), rel=1e-3)
        assert test["stddev_ts"] == pytest.approx(np.std(speeds, ddof=1), rel=1e-2)
    assert (values["kv_type"], values["precision"]) == ("q8_0", "float32")
    assert values["memory"]["kv"]["peak"] >= values["memory"]["kv"]["average"] >= 0
    pool = values["pool"]
    assert pool["heap_bytes"] == sum(heap["bytes"] for heap in pool["heap_list"])
    assert pool["heap_peak"] >= pool["heap_bytes"] > pool["free_bytes"]
    assert pool["heaps_created"] >= pool["heaps"] == len(pool["heap_list"])
    assert 0 <= pool["fragmentation"] <= 1


def test_bench_prints_a_table_as_llama_bench_does() -> None:
    done = run("bench", "-m", LLAMA, "-p", "8", "-n", "4", "-r", "1", "-t", "1")
    header, rule, first, second, empty, memory = done.stdout.splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns == ["model", "size", "params", "backend", "threads", "kv", "test", "t/s"]
    assert re.fullmatch(r"(\|-+:?)+\|", rule)
    assert [row.split("|")[-3].strip() for row in (first, second)] == ["pp8", "tg4"]
    assert len({len(line) for line in (header, rule, first, second)}) == 1
    with mn.load(LLAMA) as model:
        backend = model.device["backend"]
    assert re.search(rf"llama [\d.]+K F32 +\|.*\| {backend} +\| +1 \|.*[\d.]+ ± 0\.00 \|$", first)
    assert (empty, memory.split(":")[0]) == ("", "peak memory")


# --- pull -------------------------------------------------------------------------------------------------------


def test_pull_and_run_a_model_of_the_hub(tmp_path: Path) -> None:
    with HubServer({"owner/model": {"m-Q8_0.gguf": Path(LLAMA).read_bytes(), "m-Q4_0.gguf": b"x"}}) as hub:
        hub.tokens = {"owner/model": "hf_right"}
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_right"}
        wanted = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT / "m-Q8_0.gguf"
        done = run("pull", "owner/model:q8_0", **environment)
        assert (done.returncode, done.stdout) == (0, f"{wanted}\n")
        assert re.fullmatch(r"downloading m-Q8_0\.gguf \(\d+\.\d\d kB\)\n", done.stderr)
        again = run("pull", "owner/model:q8_0", **environment)
        assert (again.returncode, again.stdout, again.stderr) == (0, f"{wanted}\n", "")
        asked = len(hub.requests)
        text = run("generate", "the", "-m", "owner/model:Q8_0", "-n", "4", "--greedy", "-q", **environment)
        assert text.stdout == run("generate", "the", "-m", LLAMA, "-n", "4", "--greedy", "-q").stdout
        assert len(hub.requests) == asked
        for arguments, code, message in (
            (["pull", "owner/model:Q2_K"], 3, "has no model of quantisation Q2_K; it has m-Q4_0.gguf, m-Q8_0.gguf"),
            (["pull", "owner/other"], 3, "does not exist"),
            (["pull", "owner/model", "--token", "hf_wrong"], 3, "or set HF_TOKEN"),
            (["pull", "owner/model:Q8_0", "--revision", "v2"], 3, "owner/model has no revision v2"),
            (["generate", "x", "-m", "owner/other"], 3, "does not exist"),
        ):
            failed = run(*arguments, **environment)
            assert (failed.returncode, failed.stdout) == (code, "")
            assert re.fullmatch(rf"metallic: error: .*{re.escape(message)}.*\n", failed.stderr)
    gone = run("pull", "owner/model:Q4_0", **environment)
    assert gone.returncode == 1
    assert re.fullmatch(r"metallic: error: .* check the network and try again\n", gone.stderr)


def test_pull_shows_a_bar_on_a_terminal(tmp_path: Path) -> None:
    with HubServer({"owner/model": {"m.gguf": os.urandom(3_000_000)}}) as hub:
        terminal = Terminal("pull", "owner/model", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), COLUMNS="120")
        shown = terminal.read().decode()
        assert terminal.close() == 0
    assert "3.0/3.0 MB" in shown
    assert f"{COMMIT}/m.gguf" in shown.replace("\r\n", "")
