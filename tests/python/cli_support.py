"""Running the command ``metallic`` as users do: in processes of its own, in pipes and on terminals."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
LLAMA = str(GOLDENS / "llama.gguf")
COMMAND = [sys.executable, "-m", "metallic_native"]
PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "METALLIC_DEBUG")}


def run(*arguments: str, stdin: str | bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, env=PLAIN | environment, timeout=120)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def with_long_context(path: Path) -> str:
    """Write the golden model with a context so long that only an interruption ends its generations."""
    data = Path(LLAMA).read_bytes()
    key = b"llama.context_length" + struct.pack("<I", 4)
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + struct.pack("<I", 1 << 20) + data[at + 4 :])
    return str(path)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.master, end = pty.openpty()
        env = PLAIN | {"TERM": "xterm"} | environment
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=end, stdout=end, stderr=end, env=env, start_new_session=True
        )
        os.close(end)
        self.seen = b""

    def read(self, until: bytes | None = None, seconds: float = 60) -> bytes:
        """What is shown next, up to and with ``until``, or to the end."""
        deadline = time.monotonic() + seconds
        while until is None or until not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"not seen in time: {until!r}; seen: {self.seen!r}"
            try:
                data = os.read(self.master, 4096)
            except OSError:  # Linux's way to say that the other end is closed
                data = b""
            if not data:
                break
            self.seen += data
        assert until is None or until in self.seen, f"ended without {until!r}; seen: {self.seen!r}"
        end = len(self.seen) if until is None else self.seen.index(until) + len(until)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    def interrupt(self, until: bytes) -> bytes:
        """Ctrl-C, and again if nothing came of it: a signal just before readline waits for a key is only seen then."""
        for _ in range(10):
            time.sleep(0.3)
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                return self.read(until, seconds=5)
            except AssertionError:
                continue
        return self.read(until, seconds=0)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> int:
        code = self.process.wait(60)
        os.close(self.master)
        return code
