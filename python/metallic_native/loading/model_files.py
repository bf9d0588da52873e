"""Which files make a model: parts of split models, and quantisations by the names that files are given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import RequestError

__all__ = ["PREFERRED_QUANTISATIONS", "ModelFiles", "choose_model", "group_models"]

PREFERRED_QUANTISATIONS = (
    "Q4_K_M",
    "Q8_0",
    "Q5_K_M",
    "Q6_K",
    "Q4_K_S",
    "Q5_K_S",
    "Q4_0",
    "Q5_0",
    "Q4_1",
    "Q5_1",
    "IQ4_XS",
    "IQ4_NL",
    "MXFP4",
    "Q3_K_M",
    "F16",
    "BF16",
    "F32",
)
"""Which quantisation is taken where none is asked for, the first that is there."""

# ggml's gguf-split names part i of N "<name>-%05d-of-%05d.gguf".
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
# A quantisation ends a file's name: "model-Q4_K_M.gguf", "model.UD-IQ2_XXS.gguf", "model-f16.gguf".
_LABEL = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|BF16|F16|F32|FP16|FP32))$", re.IGNORECASE)
# Files in the GGUF format that are no language models: image encoders and importance matrices.
_OTHER_KINDS = ("mmproj", "imatrix")


@dataclass(frozen=True)
class ModelFiles:
    """The file or the parts of one model, in order; names are relative, with ``/`` between folders."""

    stem: str
    """The name without the number of the part and without ``.gguf``."""
    names: tuple[str, ...]
    missing: tuple[int, ...] = ()
    """Numbers of the parts that are not there."""

    @property
    def quantisation(self) -> str:
        """What the name says about the quantisation, in upper case; empty if it says nothing."""
        found = _LABEL.search(PurePosixPath(self.stem).name)
        return found[1].upper() if found else ""

    def matches(self, quantisation: str) -> bool:
        """Whether ``quantisation`` is a whole word of the path, whatever its case."""
        word = rf"(?:^|[-._/]){re.escape(quantisation)}(?:$|[-./])"
        return re.search(word, self.stem, re.IGNORECASE) is not None


def group_models(names: Iterable[str]) -> list[ModelFiles]:
    """The models among files, sorted by name. Files that are no language models are left out."""
    single: list[ModelFiles] = []
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(set(names)):
        base = PurePosixPath(name).name.lower()
        if not base.endswith(".gguf") or any(kind in base for kind in _OTHER_KINDS):
            continue
        part = _PART.fullmatch(name)
        if part is None:
            single.append(ModelFiles(name[: -len(".gguf")], (name,)))
        else:
            parts.setdefault((part["stem"], int(part["count"])), {})[int(part["number"])] = name
    split = []
    for (stem, count), found in parts.items():
        missing = tuple(number for number in range(1, count + 1) if number not in found)
        split.append(ModelFiles(stem, tuple(found[number] for number in sorted(found)), missing))
    return sorted([*single, *split], key=lambda model: model.stem)


def choose_model(models: list[ModelFiles], quantisation: str | None, where: str) -> ModelFiles:
    """The one of ``models`` that is of ``quantisation``, or by default of the most preferred one that is there.

    Raises RequestError, which lists the models and names ``where`` they are, when there is none or the choice is open.
    """
    candidates = models
    if quantisation:
        candidates = [model for model in models if model.quantisation == quantisation.upper()]
        candidates = candidates or [model for model in models if model.matches(quantisation)]
        if not candidates:
            raise RequestError(f"{where} has no model of quantisation {quantisation}; it has {_listed(models)}")
    elif len(models) > 1:
        for preferred in PREFERRED_QUANTISATIONS:
            candidates = [model for model in models if model.quantisation == preferred]
            if candidates:
                break
        candidates = candidates or models
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise RequestError(f"{where} has no GGUF model")
    raise RequestError(f"{where} has several models that fit, name one of them: {_listed(candidates)}")


def _listed(models: list[ModelFiles], most: int = 12) -> str:
    names = [model.names[0] for model in models[:most]]
    more = [f"and {len(models) - most} more"] if len(models) > most else []
    return ", ".join([*names, *more]) or "no GGUF model"
