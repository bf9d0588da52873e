"""A server on the loopback interface that speaks as much of the Hugging Face hub's protocol as downloads need.

``GET /api/models/<repo>/revision/<revision>?blobs=True`` describes a repository; ``HEAD`` and ``GET`` of
``/<repo>/resolve/<revision>/<file>`` give a file, with redirects to ``/cdn/<sha256>`` and ranges for files in Git LFS.
Faults can be ordered: see the attributes of :class:`HubServer`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """``repositories``: file contents by name, by ``owner/name``. Use as a context manager."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    small_files: set[str] = field(default_factory=set)
    """Names of files that are in Git itself, not in Git LFS."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Repositories that only a token opens; others get status 401."""
    gated: set[str] = field(default_factory=set)
    status: int | None = None
    """Every answer has this status."""
    break_after: list[int] = field(default_factory=list)
    """The next transfers of LFS files end after so many bytes, one entry each."""
    corrupt: bool = False
    """LFS files arrive with one byte changed."""
    ignore_ranges: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """What was asked: method, path, Range."""

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def transfers(self) -> list[str | None]:
        """The Range of each transfer of an LFS file."""
        return [ranges for method, path, ranges in self.requests if method == "GET" and path.startswith("/cdn/")]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            return self._send(self.hub.status)
        if path.startswith("/cdn/"):
            return self._send_lfs(path.removeprefix("/cdn/"))
        described = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        if described and self._may_read(described[1], described[2] or "main"):
            return self._describe(described[1])
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if resolved and self._may_read(resolved[1], resolved[2]):
            return self._resolve(resolved[1], resolved[3])
        if not described and not resolved:
            self._send(404)
        return None

    def _may_read(self, repo: str, revision: str) -> bool:
        token = self.hub.tokens.get(repo)
        authorised = token is not None and self.headers.get("Authorization") == f"Bearer {token}"
        if repo in self.hub.gated and not authorised:
            self._send(403, {"X-Error-Code": "GatedRepo"})
        elif repo not in self.hub.repositories or (token is not None and not authorised):
            self._send(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _describe(self, repo: str) -> None:
        siblings = []
        for name, data in self.hub.repositories[repo].items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob_id(data)}
            if name not in self.hub.small_files:
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        body = json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, repo: str, name: str) -> None:
        data = self.hub.repositories[repo].get(name)
        if data is None:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif name in self.hub.small_files:
            self._send(200, {"ETag": f'"{git_blob_id(data)}"', "X-Repo-Commit": COMMIT}, data)
        else:
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"', "X-Repo-Commit": COMMIT}
            # Another host, as on the hub: "localhost" here.
            location = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{sha256(data)}"
            self._send(302, {**linked, "Location": location})

    def _send_lfs(self, digest: str) -> None:
        if self.headers.get("Authorization"):
            return self._send(400)  # a token must not leave the hub
        files = (data for repository in self.hub.repositories.values() for data in repository.values())
        data = next(data for data in files if sha256(data) == digest)
        if self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        headers = {"ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}
        if found is None or self.hub.ignore_ranges:
            return self._send(200, headers, data)
        start = int(found[1])
        if start >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"})
        return self._send(206, {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path.startswith("/cdn/") and self.hub.break_after:
            body = body[: self.hub.break_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
