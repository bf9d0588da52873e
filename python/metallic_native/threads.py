"""Threads of this package."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

# What a thread brings upon itself, which no other can take.
_FAULTS = {signal.SIGILL, signal.SIGTRAP, signal.SIGFPE, signal.SIGBUS, signal.SIGSEGV, signal.SIGSYS}


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread and return it.

    It has signals blocked to its end: they belong to the application's threads, as for ``SignalsBlocked`` in the
    native core. One that the application waits for with ``signal.sigwait`` would otherwise end the process if the
    system happened to deliver it here.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
