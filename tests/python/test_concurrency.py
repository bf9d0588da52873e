"""Threads, signals, forks and exits around a running model."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import metallic_native as mn
from tiny_model import write_tiny_llama

Load = Callable[..., mn.Model]
GREEDY = mn.Sampling.greedy()


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path, context=16384)
    return path


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_other_threads_are_served_during_a_long_pass(long_model: Path, many: Callable[[int], int]) -> None:
    with mn.load(long_model, threads=1, batch_tokens=many(512)) as model:
        done = threading.Event()
        failed: list[BaseException] = []

        def long_pass() -> None:
            try:
                model.logits([1] * many(12000))
            except BaseException as error:
                failed.append(error)
            done.set()

        thread = threading.Thread(target=long_pass)
        thread.start()
        during = 0
        while not done.is_set():
            model.memory()
            model.generate("a", max_tokens=2, sampling=GREEDY, ignore_eos=True)
            during += not done.is_set()
        thread.join()
        assert not failed
        assert during > 1  # submissions take turns


def test_a_signal_handler_may_look_but_not_run(long_model: Path, many: Callable[[int], int]) -> None:
    done = run_script(
        """
        import signal, sys, metallic_native as mn
        model = mn.load(sys.argv[1], threads=1)
        seen = []
        def handler(*_):
            pages = model.memory().pages
            cache = model.new_cache()
            try:
                cache.extend([1], planned=1)
            except mn.RequestError as error:
                seen.append((pages, error))
            cache.close()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # not every one comes during a pass
        while not seen:
            model.logits([1] * int(sys.argv[2]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(seen[0][0] > 0, seen[0][1])
        """,
        long_model,
        many(8000),
    )
    assert done.stdout == "True a signal handler cannot use the model whose forward pass it interrupts\n", done.stderr


def test_a_signal_handler_is_refused_what_would_wait_for_what_it_interrupts(
    long_model: Path, many: Callable[[int], int]
) -> None:
    done = run_script(
        """
        import signal, sys, metallic_native as mn
        model = mn.load(sys.argv[1], threads=1)
        uses = [model.compact, model.evict_weights, lambda: model.generate([1], 1)]
        def handler(*_):
            try:
                uses[-1]()
            except mn.RequestError as error:
                print(error)
                uses.pop()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        while uses:
            model.logits([1] * int(sys.argv[2]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
        long_model,
        many(8000),
    )
    refusal = "a signal handler cannot use the model whose forward pass it interrupts"
    assert done.stdout.splitlines() == [refusal] * 3, done.stderr


def test_a_signal_handler_may_come_while_a_cache_is_made(long_model: Path) -> None:
    done = run_script(
        """
        import signal, sys, metallic_native as mn
        model = mn.load(sys.argv[1], threads=1)
        handled = 0
        def handler(*_):
            global handled
            handled += 1
            model.new_cache().close()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        while handled < 2000:
            model.new_cache()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("done")
        """,
        long_model,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(not hasattr(__import__("signal"), "sigwait"), reason="needs sigwait")
def test_a_signal_that_the_application_waits_for_reaches_it(long_model: Path) -> None:
    done = run_script(
        """
        import os, signal, sys, threading
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads block none
        import metallic_native as mn
        from metallic_native.observe import MemoryTimeline
        from metallic_native.text.tokenizer import Tokenizer
        hold, prepare = threading.Event(), Tokenizer.prepare
        Tokenizer.prepare = lambda self: (prepare(self), hold.wait())  # so that its thread is there to take the signal
        model = mn.load(sys.argv[1], threads=2)
        timeline = MemoryTimeline(model, period=0.01)
        timeline.start()
        model.logits([1, 2])
        print(sorted(thread.name for thread in threading.enumerate()))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        print(signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1)
        hold.set()
        timeline.stop()
        """,
        long_model,
    )
    threads = ["MainThread", "memory-timeline", "tokenizer-prepare"]
    assert done.stdout.splitlines() == [str(threads), "True"], (done.returncode, done.stderr)


def test_closing_during_passes_of_other_threads(long_model: Path, many: Callable[[int], int]) -> None:
    for _ in range(5):
        model = mn.load(long_model, threads=2)
        errors: list[mn.Error] = []

        def work(model: mn.Model = model, errors: list[mn.Error] = errors) -> None:
            try:
                while True:
                    model.logits([1] * many(700))
            except mn.Error as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.05)
        model.close()
        for thread in threads:
            thread.join()
        assert len(errors) == 3


def test_one_sequence_cannot_be_in_two_passes(long_model: Path, many: Callable[[int], int]) -> None:
    with mn.load(long_model, threads=1) as model:
        cache = model.new_cache()
        thread = threading.Thread(target=lambda: cache.extend([1] * many(12000), planned=12001))
        thread.start()
        refused = 0
        while thread.is_alive():
            try:
                cache._sequence.truncate(0)
            except mn.RequestError:
                refused += 1
        thread.join()
        assert refused > 0


def test_daemon_threads_do_not_abort_the_exit(long_model: Path) -> None:
    done = run_script(
        """
        import sys, threading, time, metallic_native as mn
        model = mn.load(sys.argv[1])
        def work():
            while True:
                model.logits([1] * 4000)
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
        """,
        long_model,
    )
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child_is_refused_instead_of_hanging(long_model: Path) -> None:
    done = run_script(
        """
        import os, sys, metallic_native as mn
        model = mn.load(sys.argv[1], threads=2)
        model.logits([1, 2])
        child = os.fork()
        if child == 0:
            try:
                model.logits([1, 2])
            except mn.DeviceError as error:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model.logits([1, 2]).shape)
        """,
        long_model,
    )
    assert done.stdout.startswith("7 "), done.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["model.close()", "del model, cache, stream", "stream.close()", "pass"])
def test_a_forked_child_that_gives_the_model_up_ends(long_model: Path, end: str) -> None:
    done = run_script(
        """
        import gc, os, signal, sys, metallic_native as mn
        model = mn.load(sys.argv[1], threads=2)
        cache = model.new_cache()
        stream = model.stream("a", max_tokens=8, ignore_eos=True, cache=cache)
        next(stream)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            exec(sys.argv[2])
            gc.collect()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(stream)))
        """,
        long_model,
        end,
    )
    assert done.stdout.split() == ["7", "8"], (done.stdout, done.stderr)
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_child_that_is_forked_while_others_generate_ends(long_model: Path, many: Callable[[int], int]) -> None:
    done = run_script(
        """
        import gc, os, sys, threading, metallic_native as mn
        model = mn.load(sys.argv[1], threads=1, eviction="save")
        cache = model.new_cache()
        cache.extend([1, 2, 3], planned=8)
        busy = model.new_cache()
        stop = False
        def work():
            while not stop:
                busy.extend([1], planned=2)
                busy._sequence.evict()
                busy.keep_prefix([], planned=2)
        threads = [threading.Thread(target=work)]
        for thread in threads:
            thread.start()
        codes = set()
        for _ in range(int(sys.argv[2])):
            child = os.fork()
            if child == 0:
                refused = 0
                for use in (lambda: cache.extend([1], planned=8), model.new_cache, model.memory, model.compact):
                    try:
                        use()
                    except mn.DeviceError:
                        refused += 1
                del cache, busy
                gc.collect()
                os._exit(refused)
            codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop = True
        for thread in threads:
            thread.join()
        print(codes)
        """,
        long_model,
        many(200),
    )
    assert done.stdout == "{4}\n", (done.stdout, done.stderr)


def test_a_later_generation_takes_the_cache_over(load_golden: Load) -> None:
    model = load_golden("llama")
    cache = model.new_cache()
    first = model.stream("in the", max_tokens=20, sampling=GREEDY, ignore_eos=True, cache=cache)
    next(first)
    second = model.generate("on the", max_tokens=8, sampling=GREEDY, ignore_eos=True, cache=cache)
    assert second.token_ids == model.generate("on the", max_tokens=8, sampling=GREEDY, ignore_eos=True).token_ids
    with pytest.raises(mn.RequestError, match="taken over"):
        list(first)
    other = load_golden("qwen2")
    with pytest.raises(mn.RequestError, match="another model"):
        other.generate("a", cache=cache)


def test_whose_cache_was_taken_over_shifts_it_no_more(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf", context=96)
    mine, theirs = [7 * token % 250 for token in range(95)], [11 * token % 250 for token in range(90)]
    with mn.load(tmp_path / "tiny.gguf", threads=1) as model:
        wanted = model.generate(theirs, 30, GREEDY, ignore_eos=True, context_shift=10).token_ids
        cache = model.new_cache()
        first = model.stream(mine, 30, GREEDY, ignore_eos=True, cache=cache, context_shift=2)
        next(first)
        second = model.stream(theirs, 30, GREEDY, ignore_eos=True, cache=cache, context_shift=10)
        drawn = [next(second).token_id for _ in range(7)]
        assert len(cache.tokens) == 96
        with pytest.raises(mn.RequestError, match="taken over"):
            next(first)
        assert drawn + [chunk.token_id for chunk in second if chunk.token_id is not None] == wanted


def test_a_failed_turn_leaves_the_conversation_as_it_was(load_golden: Load) -> None:
    model = load_golden("llama", context_length=64)
    with mn.Session(model) as session:
        list(session.send("in", max_tokens=3, sampling=GREEDY))
        before = list(session.messages)
        with pytest.raises(mn.RequestError):
            list(session.send("the " * 100, max_tokens=3))
        assert session.messages == before


def test_prompts_and_arguments_of_the_wrong_type(load_golden: Load) -> None:
    model = load_golden("llama")
    for prompt in (["a"], [1.7], None, 3):
        with pytest.raises(mn.RequestError):
            model.generate(prompt)  # type: ignore[arg-type]
    assert model.generate(np.array([1, 2]), max_tokens=1, ignore_eos=True).stats.prompt_tokens == 2
    for options in ({"threads": True}, {"threads": 1.5}, {"kv_type": None}, {"memory_budget": 2**70}, {"device": None}):
        with pytest.raises(mn.RequestError):
            load_golden("llama", **options)


def test_pages_of_absurd_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    write_tiny_llama(path, context=64)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "absurd.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture", "llama.attention.head_count", "llama.rope.dim")):
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], *field.types[1:2])
    heads, size = 4097, 8192
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    for tensor in reader.tensors:
        if ".attn_" in tensor.name and "norm" not in tensor.name:
            writer.add_tensor_info(
                tensor.name,
                (heads * size, 64) if "output" not in tensor.name else (64, heads * size),
                np.dtype(np.float32),
                heads * size * 64 * 4,
            )
        else:
            writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    end = max(info.nbytes for part in writer.tensors for info in part.values())
    writer.close()
    with (tmp_path / "absurd.gguf").open("r+b") as file:
        file.truncate(end * 12)  # sparse
    with pytest.raises((mn.UnsupportedModelError, mn.ModelFormatError)):
        mn.load(tmp_path / "absurd.gguf")


def test_threads_that_take_one_cache_from_each_other_draw_no_wrong_token(long_model: Path) -> None:
    model = mn.load(long_model, threads=1, batch_tokens=16)
    base = [int(token) for token in np.random.default_rng(3).integers(0, 250, 60)]
    prompts = [base[:9], base[:33], base, [*base[:20], 7, 7, 7]]
    wanted = [model.generate(prompt, 6, GREEDY, ignore_eos=True).token_ids for prompt in prompts]
    cache = model.new_cache()
    wrong: list[object] = []
    finished: list[int] = []

    def work(thread: int) -> None:
        for turn in range(30):
            which = (thread + turn) % len(prompts)
            drawn: list[int] = []
            try:
                for chunk in model.stream(prompts[which], 6, GREEDY, ignore_eos=True, cache=cache):
                    drawn += [] if chunk.token_id is None else [chunk.token_id]
                finished.append(which)
            except mn.RequestError as error:
                if "taken over" not in str(error):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)
            if drawn != wanted[which][: len(drawn)]:
                wrong.append((which, drawn))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model.close()
    assert not wrong
    assert finished
