"""The exception tree: bases, messages, and pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from metallic_native import _native, errors

EXAMPLES = [
    (errors.Error("plain"), Exception, "plain"),
    (errors.ModelFormatError("bad", file="a.gguf", where="k", offset=7), ValueError, "a.gguf: k: bad (at byte 7)"),
    (errors.ModelFormatError("bad"), ValueError, "bad"),
    (errors.UnsupportedModelError("no", what="x", supported=["a", "b"]), errors.Error, "no (supported: a, b)"),
    (
        errors.OutOfMemory("full", needed=8, available=4, owner="kv"),
        MemoryError,
        "full (8 bytes needed by kv, 4 available)",
    ),
    (errors.DeviceError("lost", scope="forward/block.3", status="5"), errors.Error, "forward/block.3: lost (status 5)"),
    (errors.RequestError("odd"), ValueError, "odd"),
]


@pytest.mark.parametrize(("error", "base", "text"), EXAMPLES)
def test_tree_text_and_pickling(error: errors.Error, base: type[Exception], text: str) -> None:
    assert isinstance(error, errors.Error)
    assert isinstance(error, base)
    assert str(error) == text
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is type(error)
        assert str(copied) == text
        assert vars(copied) == vars(error)


def test_what_interrupts_the_making_of_an_error_is_raised_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptedMaking(errors.RequestError):
        def __init__(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt  # as a signal handler would

    monkeypatch.setattr(errors, "RequestError", InterruptedMaking)
    with pytest.raises(KeyboardInterrupt):
        _native.check_kv_types("f17")
