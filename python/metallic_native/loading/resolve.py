"""From what a user calls a model to the file that holds it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import RequestError
from .model_files import ModelFiles, choose_model, group_models

__all__ = ["DownloadProgress", "HubReference", "resolve_model"]

DownloadProgress = Callable[[str, int, int], None]
"""``progress(file, done, total)``: bytes of one file of a download that are there, and its size."""

_DEMO = "demo"
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?::(?P<quantisation>[\w.-]+))?")
_PATH_IN_HUB = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<filename>[^:]+\.gguf))?(?::(?P<quantisation>[\w.-]+))?",
    re.IGNORECASE,
)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PAGES = ("resolve", "blob", "tree", "raw")


@dataclass(frozen=True)
class HubReference:
    """A model on the Hugging Face hub: a repository, and which of its files."""

    repo: str
    """``owner/name``."""
    quantisation: str | None = None
    filename: str | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubReference | None:
        """From ``owner/name[@revision][:quantisation]``, ``hf://owner/name[@revision][/file.gguf][:quantisation]`` or
        an address on huggingface.co; None if ``text`` is none of these.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            host, _, path = text.partition("/")
            if host.lower() in _HOSTS:
                return cls._of_path(path)
            found = _REPOSITORY.fullmatch(text)
            looks_like_a_file = text.lower().endswith(".gguf") or text.startswith(".")
            return None if found is None or looks_like_a_file else cls._of_match(found)
        if scheme.lower() == "hf":
            return cls._of_path(rest)
        if scheme.lower() in ("http", "https"):
            return cls._of_address(text)
        return None

    @classmethod
    def _of_match(cls, found: re.Match[str]) -> HubReference:
        groups = found.groupdict()
        return cls(groups["repo"], groups["quantisation"], groups.get("filename"), groups["revision"] or "main")

    @classmethod
    def _of_path(cls, path: str) -> HubReference | None:
        found = _PATH_IN_HUB.fullmatch(path.strip("/"))
        return None if found is None else cls._of_match(found)

    @classmethod
    def _of_address(cls, address: str) -> HubReference | None:
        """``https://huggingface.co/owner/name[/resolve|blob|tree/revision[/file.gguf]]``, or on ``HF_ENDPOINT``."""
        parts = urlsplit(address)
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT", ""))
        if (parts.hostname or "") not in _HOSTS and (parts.netloc != endpoint.netloc or not endpoint.netloc):
            return None
        path = unquote(parts.path)
        if endpoint.netloc == parts.netloc and path.startswith(endpoint.path):
            path = path[len(endpoint.path) :]
        pieces = path.strip("/").split("/")
        if len(pieces) == 2:
            return cls._of_path("/".join(pieces))
        if len(pieces) < 4 or pieces[2] not in _PAGES:
            return None
        filename = "/".join(pieces[4:])
        if filename and not filename.lower().endswith(".gguf"):
            return None
        return cls("/".join(pieces[:2]), None, filename or None, pieces[3])

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        filename = f"/{self.filename}" if self.filename else ""
        quantisation = f":{self.quantisation}" if self.quantisation else ""
        return f"{'hf://' if filename else ''}{self.repo}{revision}{filename}{quantisation}"


def resolve_model(
    path_or_repo: str | os.PathLike[str], *, progress: DownloadProgress | None = None, token: str | None = None
) -> Path:
    """The file of a model; the first part of a split one.

    ``path_or_repo`` is one of, tried in this order:

    - ``"demo"``: the model that comes with the package (a folder or file of that name is ``./demo``);
    - a file;
    - a folder with one model in it;
    - a repository on the Hugging Face hub, ``owner/name[@revision][:quantisation]``, ``hf://owner/name/file.gguf`` or
      an address on huggingface.co. Where the local cache has it the network is not asked; else it is downloaded, and
      ``progress`` is told.

    Raises RequestError, which says what was tried, when there is no such model or it cannot be downloaded.
    """
    text = os.fspath(path_or_repo)
    if not isinstance(text, str) or not text:
        raise RequestError("a model is named by a path or a Hugging Face repository, and the name given is empty")
    if text == _DEMO:
        return _bundled_demo()
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            return _model_in_folder(path)
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # no possible name, no such home, no right to read
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    reference = HubReference.parse(text)
    if reference is None:
        raise RequestError(f"{text}: {_not_found(text)}")
    found = cached_model(reference)
    if found is not None:
        return found
    from .hub import pull

    return pull(
        reference.repo,
        reference.quantisation,
        filename=reference.filename,
        revision=reference.revision,
        progress=progress,
        token=token,
    )


def _not_found(text: str) -> str:
    if "://" in text:
        return "no address of a model on the Hugging Face hub (https://huggingface.co/owner/name or hf://owner/name)"
    hint = f"; for a file of a repository write hf://{text}" if _PATH_IN_HUB.fullmatch(text) else ""
    return f"no such file, no folder with a model, and no Hugging Face repository (owner/name[:quantisation]){hint}"


def _bundled_demo() -> Path:
    package = __name__.partition(".")[0]
    path = Path(str(resources.files(package) / "data" / "demo.gguf"))
    if not path.is_file():
        raise RequestError(
            "this build of metallic-native comes without the demo model: name a GGUF file or a repository"
        )
    return path


def _model_in_folder(folder: Path) -> Path:
    models = group_models(entry.name for entry in folder.iterdir() if entry.is_file())
    if not models:
        raise RequestError(f"{folder}: the folder has no GGUF model in it")
    if len(models) > 1:
        names = ", ".join(model.names[0] for model in models[:8])
        raise RequestError(f"{folder}: the folder has {len(models)} models, name one of them: {names}")
    _check_complete(models[0], str(folder))
    return folder / models[0].names[0]


def _check_complete(model: ModelFiles, where: str) -> None:
    if model.missing:
        numbers = ", ".join(map(str, model.missing[:8]))
        raise RequestError(f"{where}: parts of the split model {model.stem} are missing: {numbers}")


def cached_model(reference: HubReference) -> Path | None:
    """The model in the local Hugging Face cache, or None where it is not there as a whole.

    Layout: ``models--owner--name/refs/<revision>`` holds a commit, ``snapshots/<commit>/`` its files (huggingface_hub,
    "Understand caching").
    """
    snapshot = _snapshot(reference)
    if snapshot is None:
        return None
    names = (str(path.relative_to(snapshot).as_posix()) for path in snapshot.rglob("*.gguf") if path.is_file())
    models = group_models(names)
    if reference.filename is not None:
        models = [model for model in models if reference.filename in model.names]
    models = [model for model in models if not model.missing]
    if not models:
        return None
    if reference.quantisation and not any(model.matches(reference.quantisation) for model in models):
        return None
    return snapshot / choose_model(models, reference.quantisation, f"the cached {reference.repo}").names[0]


def _snapshot(reference: HubReference) -> Path | None:
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / "--".join(["models", *reference.repo.split("/")])
    commit = reference.revision
    with suppress(OSError, ValueError):  # a branch or tag that was downloaded before; else it may be a commit
        commit = (repository / "refs" / reference.revision).read_text(encoding="utf-8").strip()
    snapshot = repository / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", commit) and snapshot.is_dir() else None
