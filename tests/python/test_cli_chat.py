"""The command ``metallic`` on terminals, and its chats."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

import metallic_native as mn
from cli_support import LLAMA, Terminal, run, with_long_context


@pytest.fixture
def long_llama(tmp_path: Path) -> str:
    return with_long_context(tmp_path / "long.gguf")


# --- terminals --------------------------------------------------------------------------------------------------


def test_a_terminal_shows_the_prompt_in_another_style() -> None:
    arguments = ["generate", "the thing", "-m", LLAMA, "-n", "3", "--greedy", "-q"]
    terminal = Terminal(*arguments)
    assert terminal.read().startswith(b"\x1b[2mthe thing\x1b[0m")
    assert terminal.close() == 0
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        terminal = Terminal(*arguments, **plain)
        shown = terminal.read()
        assert shown.startswith(b"the thing")
        assert b"\x1b" not in shown
        assert terminal.close() == 0


def test_a_model_cannot_steer_the_terminal() -> None:
    terminal = Terminal("generate", "a\x1b]0;title\x07b", "-m", LLAMA, "-n", "1", "-q", NO_COLOR="1")
    shown = terminal.read()
    assert b"\x1b" not in shown
    assert b"\x07" not in shown
    assert terminal.close() == 0


def test_generate_on_a_terminal_wants_a_prompt() -> None:
    terminal = Terminal("generate", "-m", LLAMA, NO_COLOR="1")
    assert b"give a text to continue, or pipe one in" in terminal.read()
    assert terminal.close() == 2


def test_a_chat_on_a_terminal(long_llama: str) -> None:
    terminal = Terminal("chat", "-m", long_llama, "-n", "-1", "--seed", "1", NO_COLOR="1")
    terminal.read(b"/help lists the commands")
    terminal.read(b"> ")
    terminal.type("/nonsense\n")
    terminal.read(b"there is no command /nonsense")
    terminal.read(b"> ")
    terminal.type("hello\n")
    terminal.read(b"hello\r\n")
    deadline = time.monotonic() + 60
    while len(terminal.seen) < 1 and time.monotonic() < deadline:
        terminal.seen += os.read(terminal.master, 100)
    os.killpg(terminal.process.pid, signal.SIGINT)  # during the answer: only the answer ends
    terminal.read(b"\r\n> ")
    terminal.interrupt(until=b"another Ctrl-C")  # at the prompt: a hint
    terminal.read(b"> ")
    terminal.type("/exit\n")
    assert terminal.close() == 0


def test_ctrl_c_twice_ends_a_chat() -> None:
    terminal = Terminal("chat", "-m", LLAMA, NO_COLOR="1")
    terminal.read(b"> ")
    terminal.interrupt(until=b"another Ctrl-C")
    terminal.read(b"> ")
    terminal.interrupt(until=b"\n")
    assert terminal.close() == 130


# --- chat -------------------------------------------------------------------------------------------------------


def test_chat_answers_each_line(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ["hello", "and \\", "more", "//slash", "", f"/save {saved}", "/exit", "never read"]
    common = ["chat", "-m", LLAMA, "-n", "8", "--greedy"]
    done = run(*common, "--system", "be kind", stdin="\n".join(lines))
    assert done.returncode == 0
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["system"] + ["user", "assistant"] * 3
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hello", "and \nmore", "/slash"]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert done.stdout == "".join(answer if answer.endswith("\n") else f"{answer}\n" for answer in answers)
    with mn.load(LLAMA) as model:
        assert answers[0] == model.chat(messages[:2], 8, mn.Sampling.greedy()).text
        assert answers[2] == model.chat(messages[:6], 8, mn.Sampling.greedy()).text
    again = run(*common, "-q", stdin=f"/load {saved}\n/save {saved}\n/exit\n")
    assert again.returncode == 0
    assert json.loads(saved.read_text()) == messages


def test_chat_commands(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "/help",
        "/system",
        "/system be brief",
        "/system",
        "hello",
        "/stats",
        "/clear",
        f"/save {saved}",
        "/nonsense",
    ]
    lines += ["/save", "/save /no/such/folder/x", "/load /no/such/file", f"/load {__file__}"]
    done = run("chat", "-m", LLAMA, "-n", "3", stdin="\n".join(lines))
    assert done.returncode == 0
    assert json.loads(saved.read_text()) == [{"role": "system", "content": "be brief"}]
    for line in ("/system [TEXT]", "there is no system message", "be brief", "peak memory: ", "1 messages saved in"):
        assert line in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("metallic: error: ")]
    assert [re.sub(r"^metallic: error: ", "", line) for line in errors] == [
        "there is no command /nonsense; /help lists them",
        "/save needs the name of a file",
        "/no/such/folder/x: No such file or directory",
        "/no/such/file: No such file or directory",
        f"{__file__} is no JSON",
    ]


def test_chat_ends_with_an_error_when_a_message_is_too_long() -> None:
    done = run("chat", "-m", LLAMA, "-q", stdin="x" * 400 + "\n")
    assert done.returncode == 2
    assert re.fullmatch(r"metallic: error: the prompt has \d+ tokens, the context holds 256\n", done.stderr)


def test_chat_needs_a_template(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    data = Path(LLAMA).read_bytes()
    path.write_bytes(data.replace(b"chat_template", b"chat_tomplate").replace(b"<|im_start|>", b"<|im_strat|>"))
    done = run("chat", "-m", str(path), stdin="hello\n")
    assert done.returncode == 3
    assert "plain.gguf has no chat template: use metallic generate" in done.stderr
