"""Side by side with llama.cpp (through llama-cpp-python) on the same files, threads and machine.

For each model, the two engines run in turn, each in its own process, several rounds; the table has medians and the
median of the rounds' ratios (ours / theirs, above 1 is faster). ``KL`` is the mean Kullback-Leibler divergence of our
next-token distributions from theirs over the prompt, in nats: what different roundings of the activations do.

    python bench/compare.py --shapes 1b --types q4_k_m q8_0 q4_0 --json bench/results/compare.json

``--peer-python`` names an interpreter that has llama-cpp-python, where this one does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_SEED = 1
AGREEMENT_TOKENS = 64


def prompt_tokens(count: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(PROMPT_SEED).integers(300, vocabulary - 1, count).astype(np.int32)


# ---- workers: one engine, one model, one process --------------------------------------------------------------------


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    import metallic_native as mn

    model = mn.load(args.model, threads=args.threads, kv_type="f16")
    first = model.generate("a", max_tokens=1, sampling=mn.Sampling.greedy(), ignore_eos=True)
    loaded = time.perf_counter() - started
    assert len(first.token_ids) == 1
    tokens = prompt_tokens(args.prompt, model.vocabulary_size)
    prefill, speed = [], []
    for _ in range(args.repeat):
        cache = model.new_cache()
        start = time.perf_counter()
        logits = cache.extend(tokens, planned=2 * args.prompt)
        prefill.append(args.prompt / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(args.decode):
            logits = cache.extend([int(np.argmax(logits[0]))], planned=2 * args.prompt)
        speed.append(args.decode / (time.perf_counter() - start))
        cache.close()
    if args.logits:
        np.save(args.logits, model.logits(tokens[:AGREEMENT_TOKENS].tolist(), all_positions=True))
    report = model.memory()
    memory = {tag: {"peak": use.peak, "average": use.average} for tag, use in report.tags.items()}
    more = {"heap_peak": report.heap_peak, "heaps_created": report.heaps_created, "mapped_bytes": report.mapped_bytes}
    return {"load": loaded, "prefill": max(prefill), "decode": max(speed), "memory": {"tags": memory, **more}}


def run_llama_cpp(args: argparse.Namespace) -> dict[str, float]:
    started = time.perf_counter()
    import ctypes

    import llama_cpp as lc

    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(str(args.model).encode(), params)
    context_params = lc.llama_context_default_params()
    context_params.n_ctx = 2 * max(args.prompt + args.decode, 256)
    context_params.n_batch = context_params.n_ubatch = 512
    context_params.n_threads = context_params.n_threads_batch = args.threads
    context = lc.llama_init_from_model(model, context_params)
    vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))

    def decode(ids: np.ndarray) -> None:
        buffer = (ctypes.c_int32 * len(ids))(*ids.tolist())
        if lc.llama_decode(context, lc.llama_batch_get_one(buffer, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")

    def logits() -> np.ndarray:
        return np.ctypeslib.as_array(lc.llama_get_logits_ith(context, -1), (vocabulary,))

    decode(np.array([1], np.int32))
    np.argmax(logits())
    loaded = time.perf_counter() - started
    tokens = prompt_tokens(args.prompt, vocabulary)
    memory = lc.llama_get_memory(context)
    prefill, speed = [], []
    for _ in range(args.repeat):
        lc.llama_memory_clear(memory, True)
        start = time.perf_counter()
        for begin in range(0, len(tokens), 512):
            decode(tokens[begin : begin + 512])
        best = int(np.argmax(logits()))
        prefill.append(args.prompt / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(args.decode):
            decode(np.array([best], np.int32))
            best = int(np.argmax(logits()))
        speed.append(args.decode / (time.perf_counter() - start))
    if args.logits:
        lc.llama_memory_clear(memory, True)
        rows = []
        for token in tokens[:AGREEMENT_TOKENS]:
            decode(np.array([token], np.int32))
            rows.append(logits().copy())
        np.save(args.logits, np.stack(rows))
    return {"load": loaded, "prefill": max(prefill), "decode": max(speed)}


ENGINES = {"ours": run_ours, "llama.cpp": run_llama_cpp}

# ---- the comparison


def measure(engine: str, python: str, model: Path, args: argparse.Namespace, logits: Path | None) -> dict[str, Any]:
    command = [python, __file__, "--worker", engine, "--model", str(model), "--threads", str(args.threads)]
    command += ["--prompt", str(args.prompt), "--decode", str(args.decode), "--repeat", str(args.repeat)]
    if logits:
        command += ["--logits", str(logits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed on {model}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean KL(theirs || ours) of the rows' softmax, in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def compare(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    pythons = {"ours": sys.executable, "llama.cpp": args.peer_python}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npy" for name in ENGINES}
        for number in range(args.rounds):
            order = list(ENGINES) if number % 2 == 0 else list(ENGINES)[::-1]
            for name in order:
                rounds[name].append(measure(name, pythons[name], model, args, files[name] if number == 0 else None))
        kl = divergence(np.load(files["ours"]), np.load(files["llama.cpp"]))
    row: dict[str, Any] = {"model": model.stem, "kl": kl, "memory ours": rounds["ours"][0]["memory"]}
    for what in ("prefill", "decode", "load"):
        values = {name: [r[what] for r in results] for name, results in rounds.items()}
        for name in ENGINES:
            row[f"{what} {name}"] = statistics.median(values[name])
        ratios = [a / b for a, b in zip(values["ours"], values["llama.cpp"], strict=True)]
        row[f"{what} ratio"] = statistics.median(ratios)
    return row


def print_table(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    print(f"\n| model | pp{args.prompt} ours | llama.cpp | ratio | tg{args.decode} ours | llama.cpp | ratio ", end="")
    print("| first token s, ours | llama.cpp | KL |")
    print("|---|" + "---:|" * 9)
    for row in rows:
        cells = [f"{row[f'{what} {who}']:.1f}" for what in ("prefill", "decode") for who in ENGINES]
        cells.insert(2, f"**{row['prefill ratio']:.2f}**")
        cells.append(f"**{row['decode ratio']:.2f}**")
        cells += [f"{row['load ours']:.2f}", f"{row['load llama.cpp']:.2f}", f"{row['kl']:.1e}"]
        print(f"| {row['model']} | " + " | ".join(cells) + " |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1b"])
    parser.add_argument("--types", nargs="+", default=["q4_k_m", "q8_0", "q4_0"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "metallic-bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2, help="measurements in each process, of which the best counts")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(ENGINES[args.worker](args)))
        return
    from synthetic import ensure_model

    rows = []
    for shape in args.shapes:
        for file_type in args.types:
            rows.append(compare(ensure_model(args.folder, shape, file_type), args))
            print_table(rows[-1:], args)
    print_table(rows, args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
