"""Downloads from the Hugging Face hub: into its local cache, resumed where they stopped, verified by SHA-256.

The transfer itself is huggingface_hub's ``http_get``, which follows redirects, keeps tokens from other hosts and
resumes within a call. Its ``hf_hub_download`` starts anew when the process was ended; gigabytes deserve better, so a
file grows here in ``blobs/<sha256>.partial`` of the repository's cache folder until it is complete and verified.
Layout of the cache: huggingface_hub, "Understand caching".
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import Error, RequestError
from .model_files import ModelFiles, choose_model, group_models
from .resolve import DownloadProgress

__all__ = ["pull"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_SPARE_BYTES = 16 << 20  # left free on the disk by a download
_HTTP_GET = "huggingface_hub.http_get"  # the group of its progress bars
# The HTTP client differs between versions of huggingface_hub; this is the root of its exceptions.
_CLIENT_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class _RemoteFile:
    """A file of a repository at one commit. Small ones outside Git LFS have no ``sha256``, but a ``blob_id``."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


def pull(
    repo: str,
    quantisation: str | None = None,
    *,
    filename: str | None = None,
    revision: str = "main",
    progress: DownloadProgress | None = None,
    token: str | None = None,
) -> Path:
    """Download a model from the Hugging Face hub, unless the cache has it as it is now, and give its (first) file.

    ``repo`` is ``owner/name``. Of its GGUF models the one of ``quantisation`` is taken (``Q4_K_M``, in any case), the
    most usual one by default, or the one with the file ``filename``; all parts of a split model are fetched.
    ``progress(file, done, total)`` is called as bytes arrive. ``token`` is by default the one that huggingface_hub
    knows (``HF_TOKEN``, or ``hf auth login``). ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are obeyed.

    Raises RequestError where the repository, revision or file does not exist, may not be read or is ambiguous; Error
    where the network or the disk fails, or the file that arrived is not the one that the hub describes. An interrupted
    download goes on where it stopped when it is asked for again.
    """
    with _translated_errors(repo, revision):
        commit, files = _listing(repo, revision, token)
    model = _choose(files, repo, quantisation, filename)
    paths = []
    for name in model.names:
        with _translated_errors(repo, revision, name):
            paths.append(_fetch(repo, revision, commit, files[name], progress or _silent, token))
    return paths[0]


def _silent(file: str, done: int, total: int) -> None:
    del file, done, total


def _listing(repo: str, revision: str, token: str | None) -> tuple[str, dict[str, _RemoteFile]]:
    """The commit that ``revision`` is now, and its files by name."""
    from huggingface_hub import HfApi

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    api = HfApi(endpoint=constants.ENDPOINT)
    info = api.model_info(repo, revision=revision, files_metadata=True, token=token)
    files = {}
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        size = sibling.lfs.size if sibling.lfs else sibling.size
        if size is None or (sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256)):
            continue  # no file that could be verified
        if not all(part.strip(". ") for part in sibling.rfilename.split("/")) or "\\" in sibling.rfilename:
            continue  # a name that would leave the folder
        files[sibling.rfilename] = _RemoteFile(sibling.rfilename, size, sha256, sibling.blob_id)
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise Error(f"{constants.ENDPOINT} does not say which commit {revision} of {repo} is")
    return str(info.sha), files


def _choose(files: dict[str, _RemoteFile], repo: str, quantisation: str | None, filename: str | None) -> ModelFiles:
    models = group_models(files)
    if filename is not None:
        models = [model for model in models if filename in model.names]
        if not models:
            raise RequestError(f"{repo} has no GGUF model with the file {filename}")
    if not models:
        raise RequestError(f"{repo} has no GGUF model; look for a repository of the same name that ends in -GGUF")
    model = choose_model(models, quantisation, repo)
    if model.missing:
        raise RequestError(f"{repo} lacks parts {', '.join(map(str, model.missing))} of the split model {model.stem}")
    return model


def _fetch(
    repo: str, revision: str, commit: str, file: _RemoteFile, progress: DownloadProgress, token: str | None
) -> Path:
    """One file, complete and verified, at its place in the cache."""
    from huggingface_hub import hf_hub_download

    folder = Path(constants.HF_HUB_CACHE) / "--".join(["models", *repo.split("/")])
    present = folder / "snapshots" / commit / file.name
    if present.is_file() and present.stat().st_size != file.size:
        log.warning("%s has the wrong size and is downloaded again", present)
        _forget(present)
    if not present.is_file():
        _check_space(folder, file)
        # Above the hub's limit for HTTP only the library's own transfer is left.
        if file.sha256 is not None and file.size <= getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 1 << 62):
            _download_blob(folder, repo, commit, file, progress, token)
    with _quiet_library():
        path = Path(hf_hub_download(repo, file.name, revision=revision, endpoint=constants.ENDPOINT, token=token))
    if path != present and path.stat().st_size != file.size:
        raise Error(f"{repo} changed while {file.name} was downloaded: ask for it again")
    if file.sha256 is None:
        _verify(path, _git_blob_id(path), file.blob_id, file)
    progress(file.name, file.size, file.size)
    return path


def _download_blob(
    folder: Path, repo: str, commit: str, file: _RemoteFile, progress: DownloadProgress, token: str | None
) -> None:
    """Put the file where the library keeps files by their hash, so that it finds it there."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined, unused-ignore]

    blob = folder / "blobs" / str(file.sha256)
    partial = blob.with_name(f"{blob.name}.partial")
    lock = folder.parent / ".locks" / folder.name / f"{blob.name}.partial.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(str(lock)):
        if blob.is_file() and blob.stat().st_size == file.size:
            return
        _transfer(partial, repo, commit, file, progress, token)
        _verify(partial, _sha256(partial), file.sha256, file)
        partial.replace(blob)


def _transfer(
    partial: Path, repo: str, commit: str, file: _RemoteFile, progress: DownloadProgress, token: str | None
) -> None:
    """Let ``partial`` grow to the file's size. Goes on for as long as an attempt brings new bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

    url = hf_hub_url(repo, file.name, revision=commit, endpoint=constants.ENDPOINT)
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    restarted = False
    while True:
        with open(partial, "ab") as target:
            start = target.tell()
            if start == file.size:
                return
            sink = _CountingFile(target, lambda done: progress(file.name, done, file.size))
            try:
                with _quiet_library():
                    headers = build_hf_headers(token=token)
                    http_get(url, sink, resume_size=start, headers=headers, expected_size=file.size)  # type: ignore[arg-type]
            except HfHubHTTPError:
                raise
            except (OSError, _CLIENT_ERROR) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                target.flush()
                if target.tell() > file.size and not restarted:  # the server began anew in spite of the range
                    target.truncate(0)
                    restarted = True
                elif not start < target.tell() <= file.size:
                    raise
                log.info("%s: %s; going on at byte %d", file.name, error, target.tell())


class _CountingFile:
    """The file that ``http_get`` writes to; tells how long it has become."""

    def __init__(self, file: BinaryIO, grown: Callable[[int], None]) -> None:
        self._file = file
        self._grown = grown
        self._size = file.tell()
        grown(self._size)

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._size += written
        self._grown(self._size)
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._size = self._file.seek(offset, whence)
        return self._size

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def flush(self) -> None:
        self._file.flush()


def _sha256(path: Path) -> str:
    return _digest(path, hashlib.sha256())


def _git_blob_id(path: Path) -> str:
    """The name that Git gives a file's content."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


def _digest(path: Path, state: Any) -> str:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return str(state.hexdigest())


def _verify(path: Path, digest: str, expected: str | None, file: _RemoteFile) -> None:
    if expected is None or digest == expected:
        return
    _forget(path)
    raise Error(
        f"{file.name} arrived damaged (hash {digest}, the hub says {expected}) and was deleted: download it again"
    )


def _forget(path: Path) -> None:
    """Delete a file of the cache, and what a link in its place points to."""
    target = path.resolve()
    path.unlink(missing_ok=True)
    target.unlink(missing_ok=True)


def _check_space(folder: Path, file: _RemoteFile) -> None:
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    partial = folder / "blobs" / f"{file.sha256}.partial"
    needed = file.size - (partial.stat().st_size if partial.is_file() else 0)
    if needed + _SPARE_BYTES > free:
        raise _disk_full(f"{file.name} needs {needed} more bytes and {free} are free")


def _disk_full(detail: str) -> Error:
    return Error(
        f"the disk with {constants.HF_HUB_CACHE} is full ({detail}): free some space, or set HF_HOME to another disk"
    )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without huggingface_hub's own progress bars."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled(_HTTP_GET) or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars(_HTTP_GET)
    try:
        yield
    finally:
        enable_progress_bars(_HTTP_GET)


@contextmanager
def _translated_errors(repo: str, revision: str, name: str | None = None) -> Iterator[None]:
    """The library's errors as this package's: one line each, which says what to do."""
    try:
        yield
    except Error:
        raise
    except LocalEntryNotFoundError as error:
        raise _translated(error.__cause__ or error, repo, revision, name) from error
    except (OSError, HFValidationError, EntryNotFoundError, _CLIENT_ERROR) as error:
        raise _translated(error, repo, revision, name) from error


def _translated(error: BaseException, repo: str, revision: str, name: str | None) -> Error:
    endpoint = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return RequestError(f"{repo} is gated: accept its terms at {endpoint}/{repo}, then set HF_TOKEN to your token")
    if isinstance(error, RevisionNotFoundError):
        return RequestError(f"{repo} has no revision {revision}")
    if isinstance(error, RepositoryNotFoundError):
        return RequestError(f"{repo} does not exist on {endpoint}, or is private: check the name, or set HF_TOKEN")
    if isinstance(error, EntryNotFoundError):
        return RequestError(f"{repo} has no file {name} at revision {revision}")
    if isinstance(error, HfHubHTTPError):
        return _translated_status(error, repo)
    if isinstance(error, HFValidationError):
        return RequestError(f"{repo} is no name of a repository: it should be owner/name")
    if isinstance(error, OfflineModeIsEnabled):
        return RequestError(f"{repo} is not in the local cache, and HF_HUB_OFFLINE forbids to download it")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(str(error.strerror))
    if isinstance(error, OSError) and isinstance(error.errno, int) and error.filename is not None:
        return Error(f"{error.filename}: {error.strerror}; HF_HOME says where downloads are kept")
    reason = " ".join(str(error).split()) or type(error).__name__
    return Error(f"{repo} could not be downloaded from {endpoint} ({reason}): check the network and try again")


def _translated_status(error: HfHubHTTPError, repo: str) -> Error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    endpoint = constants.ENDPOINT
    if status in (401, 403):
        return RequestError(
            f"{endpoint} refuses access to {repo} (status {status}): set HF_TOKEN to a token that may read it"
        )
    if status == 404:
        return RequestError(f"{repo} does not exist on {endpoint}: check the name")
    if status == 429:
        return Error(f"{endpoint} limits the rate of requests (status 429): wait a few minutes, or set HF_TOKEN")
    return Error(f"{endpoint} cannot serve {repo} now (status {status}): try again later")
