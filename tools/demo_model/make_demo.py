"""Makes the demo model from nothing: corpus, tokenizer, training, evaluation, stories; writes weights and tokenizer.

Writes ``demo.npz`` (float16 weights under GGUF names, configuration, held-out rows), ``tokenizer.json``,
``samples.txt`` and ``report.json`` to ``--out``, and ``demo.gguf`` too where the ``gguf`` package is installed;
where it is not, run ``export_gguf.py`` on a machine that has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from model import Llama
    from train import Trained

logger = logging.getLogger("demo_model")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=6.0, help="time for training")
    parser.add_argument("--limit-minutes", type=float, default=9.2, help="time for everything; training is cut to fit")
    parser.add_argument("--steps", type=int, default=None, help="exactly this many steps instead of --minutes")
    parser.add_argument("--documents", type=int, default=1_600_000, help="training documents")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny run that checks the whole way")
    return parser.parse_args()


def main() -> int:
    """Runs everything in order; returns the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    began = time.monotonic()
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes of the corpus are parallel enough
    if args.smoke:
        args.documents, args.processes = 600, 2
        args.steps = args.steps or 8
    run(args, began)
    return 0


def run(args: argparse.Namespace, began: float) -> None:
    """Corpus, tokenizer, training and results, with a line of log for each."""
    import torch

    import corpus
    import train
    import train_tokenizer
    from model import Config

    tokenizer_path = args.out / "tokenizer.json"
    tokenizer = train_tokenizer.train(corpus.documents(args.seed, 1500 if args.smoke else train_tokenizer.DOCUMENTS))
    tokenizer.save(str(tokenizer_path))
    logger.info("tokenizer: %d entries, %.0f s", tokenizer.get_vocab_size(), time.monotonic() - began)
    data = corpus.encode_many(str(tokenizer_path), args.seed, 0, args.documents, args.processes)
    mean = len(data.tokens) / len(data.starts)
    took = time.monotonic() - began
    logger.info("%d documents, %d tokens (%.0f each), %.0f s", len(data.starts), len(data.tokens), mean, took)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, settings = Config(vocab_size=tokenizer.get_vocab_size()), train.Settings(seed=args.seed)
    if args.smoke:
        config = dataclasses.replace(config, layers=2)
        settings = dataclasses.replace(settings, row=128, batch=2, warmup=4)
    held_out = held_out_rows(tokenizer, args.seed, settings.row if args.smoke else 1024, 4 if args.smoke else 48)
    left = args.limit_minutes * 60 - (time.monotonic() - began) - 75  # for compiling, evaluation and stories
    seconds = max(10.0, min(args.minutes * 60, left))

    def keep(model: Llama) -> None:
        save(args.out / "demo.npz", model, held_out)

    trained = train.train(config, settings, data, device, seconds, args.steps, keep)
    keep(trained.model)
    finish(args, trained, held_out, tokenizer_path, began)


def held_out_rows(tokenizer: Tokenizer, seed: int, row: int, count: int) -> NDArray[np.uint16]:
    """``count`` rows [count, row + 1] uint16 of text that is never trained on."""
    import numpy as np

    import corpus

    data = corpus.encode_chunk(tokenizer, seed, corpus.HELD_OUT_CHUNK, max(50, count * 10))
    usable = [int(s) for s in data.starts if s + row + 1 <= len(data.tokens)]
    picks = usable[:: max(1, len(usable) // count)][:count]
    return np.stack([data.tokens[s : s + row + 1] for s in picks])


def save(path: Path, model: Llama, held_out: NDArray[np.uint16]) -> None:
    """Writes weights (float16, norms float32) under GGUF tensor names, the configuration and the held-out rows."""
    import numpy as np

    arrays: dict[str, Any] = {"config": np.array(json.dumps(dataclasses.asdict(model.c))), "held_out": held_out}
    for name, parameter in model.named_parameters():
        value = parameter.detach().float().cpu().numpy()
        arrays[name] = value.astype(np.float16) if value.ndim == 2 else value
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def finish(
    args: argparse.Namespace, trained: Trained, held_out: NDArray[np.uint16], tokenizer_path: Path, began: float
) -> None:
    """Evaluates, tells stories, writes the report and, where possible, the GGUF file."""
    from tokenizers import Tokenizer

    import behaviour
    import train

    model = trained.model.eval()
    teller = behaviour.Teller(model, Tokenizer.from_file(str(tokenizer_path)))
    loss = train.evaluate(model, held_out)
    report = {
        "held_out_loss": round(loss, 4),
        "steps": trained.steps,
        "tokens": trained.tokens,
        "training_seconds": round(trained.seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": dataclasses.asdict(model.c),
        "seed": args.seed,
        **behaviour.measure(teller, 2 if args.smoke else 256, 20 if args.smoke else behaviour.LIMIT),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    logger.info("%s", json.dumps(report))
    samples = behaviour.samples(teller, 16 if args.smoke else behaviour.LIMIT)
    (args.out / "samples.txt").write_text(samples, encoding="utf-8")
    logger.info("%s", samples)
    if importlib.util.find_spec("gguf"):
        import export_gguf

        export_gguf.export(args.out / "demo.npz", tokenizer_path, args.out / "demo.gguf")
        logger.info("wrote %s", args.out / "demo.gguf")
    logger.info("everything took %.0f s", time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
