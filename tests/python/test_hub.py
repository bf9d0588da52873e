"""Downloads, against a server on the loopback interface that speaks the hub's protocol."""

from __future__ import annotations

import errno
import logging
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from hub_server import COMMIT, HubServer, sha256
from metallic_native import Error, RequestError
from metallic_native.loading import hub, resolve_model
from metallic_native.loading.hub import pull

CHUNK = 1 << 16


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        for module in (constants, file_download):  # older versions have a copy in the latter
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
            monkeypatch.delenv(name, raising=False)
        yield running


def blobs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("hub/models--*/blobs/*"))


def test_a_file_is_downloaded_verified_and_kept_as_the_library_keeps_it(server: HubServer, tmp_path: Path) -> None:
    data = content(5 * CHUNK + 7)
    server.repositories["owner/model"] = {"model-Q4_K_M.gguf": data, "README.md": b"text"}
    seen: list[tuple[str, int, int]] = []
    path = pull("owner/model", progress=lambda *event: seen.append(event))
    assert path == tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT / "model-Q4_K_M.gguf"
    assert path.read_bytes() == data
    assert blobs(tmp_path) == [sha256(data)]
    assert seen[0] == ("model-Q4_K_M.gguf", 0, len(data))
    assert seen[-1] == ("model-Q4_K_M.gguf", len(data), len(data))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert file_download.try_to_load_from_cache("owner/model", "model-Q4_K_M.gguf", constants.HF_HUB_CACHE) == str(path)


def test_what_is_there_already_is_not_downloaded_again(server: HubServer) -> None:
    server.repositories["owner/model"] = {"model.gguf": content(CHUNK)}
    first = pull("owner/model")
    assert pull("owner/model") == first
    assert len(server.transfers) == 1


def test_a_file_of_the_wrong_size_in_the_cache_is_replaced(server: HubServer) -> None:
    data = content(3 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    path = pull("owner/model")
    path.resolve().write_bytes(data[:100])
    assert pull("owner/model").read_bytes() == data


def test_a_transfer_that_breaks_off_is_resumed_at_once(server: HubServer) -> None:
    data = content(10 * CHUNK + 5)
    server.repositories["owner/model"] = {"model.gguf": data}
    server.break_after = [3 * CHUNK, 2 * CHUNK]
    assert pull("owner/model").read_bytes() == data
    assert server.transfers == [None, f"bytes={3 * CHUNK}-", f"bytes={5 * CHUNK}-"]


def test_an_interrupted_download_goes_on_in_the_next_call(server: HubServer, tmp_path: Path) -> None:
    data = content(10 * CHUNK + 5)
    server.repositories["owner/model"] = {"model.gguf": data}

    def interrupt(file: str, done: int, total: int) -> None:
        if done >= 4 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("owner/model", progress=interrupt)
    assert blobs(tmp_path) == [f"{sha256(data)}.partial"]
    seen: list[int] = []
    assert pull("owner/model", progress=lambda file, done, total: seen.append(done)).read_bytes() == data
    assert server.transfers == [None, f"bytes={4 * CHUNK}-"]
    assert seen[0] == 4 * CHUNK
    assert blobs(tmp_path) == [sha256(data)]


def test_a_server_that_ignores_ranges_sends_all_again(server: HubServer) -> None:
    data = content(6 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    server.break_after = [2 * CHUNK]
    server.ignore_ranges = True
    assert pull("owner/model").read_bytes() == data


def test_a_server_that_never_gets_further_is_given_up(server: HubServer, tmp_path: Path) -> None:
    server.repositories["owner/model"] = {"model.gguf": content(6 * CHUNK)}
    server.break_after = [2 * CHUNK] + [0] * 50
    with pytest.raises(Error, match="check the network and try again") as caught:
        pull("owner/model")
    assert "\n" not in str(caught.value)
    assert len(server.break_after) > 20  # it did not go on for ever
    assert len(blobs(tmp_path)) == 1  # what arrived is kept


def test_a_damaged_file_is_refused_and_deleted(server: HubServer, tmp_path: Path) -> None:
    data = content(2 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    server.corrupt = True
    with pytest.raises(Error, match=r"damaged.*download it again"):
        pull("owner/model")
    assert blobs(tmp_path) == []
    assert not list(tmp_path.rglob("*.gguf"))
    server.corrupt = False
    assert pull("owner/model").read_bytes() == data


def test_a_partial_file_of_other_bytes_is_found_out(server: HubServer, tmp_path: Path) -> None:
    data = content(4 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    partial = tmp_path / "hub" / "models--owner--model" / "blobs" / f"{sha256(data)}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content(CHUNK, seed=1))
    with pytest.raises(Error, match="damaged"):
        pull("owner/model")
    assert pull("owner/model").read_bytes() == data
    partial.write_bytes(data + b"too much")
    assert pull("owner/model").read_bytes() == data


def test_small_files_outside_lfs_are_verified_too(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(1000)
    server.repositories["owner/model"] = {"model.gguf": data}
    server.small_files = {"model.gguf"}
    assert pull("owner/model").read_bytes() == data
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr("hub_server.git_blob_id", lambda data: "0" * 40)
    with pytest.raises(Error, match="damaged"):
        pull("owner/model")


def test_all_parts_of_a_split_model_are_downloaded(server: HubServer) -> None:
    parts = {f"Q8_0/big-Q8_0-{i:05}-of-00003.gguf": content(CHUNK, seed=i) for i in (1, 2, 3)}
    server.repositories["owner/model"] = {**parts, "small-Q4_0.gguf": b"x"}
    path = pull("owner/model", "q8_0")
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    for name, data in parts.items():
        assert (path.parents[1] / name).read_bytes() == data
    assert pull("owner/model", filename="Q8_0/big-Q8_0-00002-of-00003.gguf") == path
    del server.repositories["owner/model"]["Q8_0/big-Q8_0-00003-of-00003.gguf"]
    with pytest.raises(RequestError, match="lacks parts 3"):
        pull("owner/model", "Q8_0")


@pytest.mark.parametrize(
    ("quantisation", "chosen"),
    [
        (None, "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0.gguf"),
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("bf16", "m.BF16.gguf"),
    ],
)
def test_choosing_a_quantisation(server: HubServer, quantisation: str | None, chosen: str) -> None:
    names = ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m.BF16.gguf", "mmproj-F16.gguf", "config.json"]
    server.repositories["owner/model"] = {name: name.encode() for name in names}
    assert pull("owner/model", quantisation).read_bytes() == chosen.encode()


def test_a_choice_that_is_open_lists_what_there_is(server: HubServer) -> None:
    server.repositories["owner/model"] = {"a-Q4_K_M.gguf": b"a", "b-Q4_K_M.gguf": b"b", "c-Q6_K.gguf": b"c"}
    for quantisation in (None, "Q4_K_M"):
        with pytest.raises(RequestError, match=r"several models.*a-Q4_K_M\.gguf, b-Q4_K_M\.gguf$"):
            pull("owner/model", quantisation)
    with pytest.raises(RequestError, match=r"no model of quantisation Q4_K; it has .*c-Q6_K"):
        pull("owner/model", "Q4_K")
    with pytest.raises(RequestError, match=r"no GGUF model with the file d\.gguf"):
        pull("owner/model", filename="d.gguf")
    server.repositories["owner/original"] = {"model.safetensors": b"x", "mmproj.gguf": b"y"}
    with pytest.raises(RequestError, match="-GGUF"):
        pull("owner/original")


def test_repositories_that_cannot_be_read(server: HubServer) -> None:
    server.repositories |= {"owner/private": {"m.gguf": b"private"}, "owner/gated": {"m.gguf": b"gated"}}
    server.tokens = {"owner/private": "hf_right", "owner/gated": "hf_right"}
    server.gated = {"owner/gated"}
    with pytest.raises(RequestError, match=r"does not exist.*or is private.*HF_TOKEN"):
        pull("owner/private")
    with pytest.raises(RequestError, match="does not exist"):
        pull("owner/private", token="hf_wrong")
    with pytest.raises(RequestError, match="gated: accept its terms at"):
        pull("owner/gated")
    with pytest.raises(RequestError, match="does not exist"):
        pull("owner/nothing")
    with pytest.raises(RequestError, match="no revision v2"):
        pull("owner/private", revision="v2", token="hf_right")
    with pytest.raises(RequestError, match="should be owner/name"):
        pull("owner/mo del")
    # The right token opens both, and is not sent to the host that the redirect names.
    assert pull("owner/private", token="hf_right").read_bytes() == b"private"
    assert pull("owner/gated", token="hf_right").read_bytes() == b"gated"


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (403, RequestError, "HF_TOKEN"),
        (404, RequestError, "check the name"),
        (429, Error, "wait a few minutes"),
        (500, Error, "try again later"),
        (503, Error, "try again later"),
    ],
)
def test_a_server_that_refuses(server: HubServer, status: int, kind: type[Error], advice: str) -> None:
    server.status = status
    with pytest.raises(kind, match=advice) as caught:
        pull("owner/model")
    assert "\n" not in str(caught.value)


def test_no_server_at_all(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Error, match=r"could not be downloaded from http://127\.0\.0\.1:9 .*check the network"):
        pull("owner/model")


def test_offline_mode(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["owner/model"] = {"model.gguf": b"model"}
    path = pull("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.requests)
    assert resolve_model("owner/model") == path
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE"):
        resolve_model("owner/other")
    assert len(server.requests) == asked


def test_a_disk_without_room(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = content(4 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))  # type: ignore[attr-defined]
        with pytest.raises(Error, match=r"is full .*HF_HOME"):
            pull("owner/model")
    assert not server.transfers

    def full(self: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub._CountingFile, "write", full)
        with pytest.raises(Error, match=r"is full .*HF_HOME"):
            pull("owner/model")
    assert pull("owner/model").read_bytes() == data


def test_a_cache_that_cannot_be_written(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    server.repositories["owner/model"] = {"model.gguf": content(CHUNK)}
    with pytest.raises(Error, match="HF_HOME"):
        pull("owner/model")


def test_two_downloads_of_one_file_at_a_time(server: HubServer) -> None:
    data = content(20 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull("owner/model"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(paths) == 3
    assert {path.read_bytes() for path in paths} == {data}
    assert len(server.transfers) == 1


def test_names_that_would_leave_the_cache_are_refused(server: HubServer, tmp_path: Path) -> None:
    server.repositories["owner/model"] = {"../../../../outside.gguf": b"x"}
    with pytest.raises(RequestError, match="no GGUF model"):
        pull("owner/model")
    assert not list(tmp_path.rglob("outside.gguf"))


def test_the_library_shows_no_progress_of_its_own(server: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.repositories["owner/model"] = {"model.gguf": content(3 * CHUNK)}
    pull("owner/model")
    assert capfd.readouterr() == ("", "")


def test_a_download_is_logged_where_it_goes_on(
    server: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the library itself gives up: each new attempt brought something."""
    data = content(10 * CHUNK)
    server.repositories["owner/model"] = {"model.gguf": data}
    real, attempts = file_download.http_get, []

    def one_chunk_at_a_time(url: str, target: object, **options: object) -> None:
        attempts.append(options["resume_size"])
        if len(attempts) < 4:
            start = int(str(options["resume_size"]))
            target.write(data[start : start + CHUNK])  # type: ignore[attr-defined]
            raise ConnectionResetError("reset by peer")
        real(url, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(file_download, "http_get", one_chunk_at_a_time)
    with caplog.at_level(logging.INFO, "metallic_native"):
        assert pull("owner/model").read_bytes() == data
    assert attempts == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert f"going on at byte {3 * CHUNK}" in caplog.text


def test_resolving_downloads_once_and_then_uses_the_cache(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.repositories["owner/model"] = {"m-Q8_0.gguf": b"eight", "m-Q4_K_M.gguf": b"four"}
    four = resolve_model("owner/model")
    assert four.read_bytes() == b"four"
    asked = len(server.requests)
    started = time.perf_counter()
    assert resolve_model("owner/model") == four
    assert resolve_model("owner/model:q4_k_m") == four
    assert time.perf_counter() - started < 5
    assert len(server.requests) == asked
    assert resolve_model("hf://owner/model:Q8_0").read_bytes() == b"eight"
    assert len(server.requests) > asked
    assert resolve_model(f"{server.url}/owner/model/blob/main/m-Q8_0.gguf").read_bytes() == b"eight"
