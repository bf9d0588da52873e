"""From names of models to files, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from metallic_native import RequestError
from metallic_native.loading import resolve, resolve_model
from metallic_native.loading.model_files import PREFERRED_QUANTISATIONS, ModelFiles, choose_model, group_models
from metallic_native.loading.resolve import HubReference

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and downloads that fail the test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("metallic_native.loading.hub.pull", lambda *args, **options: pytest.fail("asked the network"))
    monkeypatch.chdir(tmp_path)


def cache(tmp_path: Path, repo: str, names: list[str], revision: str = "main") -> Path:
    folder = tmp_path / "hub" / "--".join(["models", *repo.split("/")])
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"GGUF")
    return snapshot


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert resolve_model(file) == file
    assert resolve_model(str(file)) == file
    assert resolve_model("model.gguf") == Path("model.gguf")
    odd = tmp_path / "weights.bin"
    odd.write_bytes(b"GGUF")
    assert resolve_model(odd) == odd  # what is in a file decides, not its name


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve_model("~/model.gguf") == tmp_path / "model.gguf"
    with pytest.raises(RequestError, match="home"):
        resolve_model("~nobody-of-this-name/model.gguf")


def test_a_folder_with_one_model(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(RequestError, match="no GGUF model in it"):
        resolve_model(folder)
    for name in ("README.md", "mmproj-F16.gguf", "model-Q8_0.gguf"):
        (folder / name).write_bytes(b"")
    assert resolve_model(folder) == folder / "model-Q8_0.gguf"
    (folder / "other-Q8_0.gguf").write_bytes(b"")
    with pytest.raises(RequestError, match=r"2 models, name one of them: model-Q8_0\.gguf, other-Q8_0\.gguf"):
        resolve_model(folder)


def test_a_folder_with_a_split_model(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"big-{number:05}-of-00003.gguf").write_bytes(b"")
    assert resolve_model(tmp_path) == tmp_path / "big-00001-of-00003.gguf"
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    with pytest.raises(RequestError, match="parts of the split model big are missing: 2"):
        resolve_model(tmp_path)


def test_the_demo_model_comes_with_the_package_or_says_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()  # a folder of that name is ./demo
    package = tmp_path / "package"
    monkeypatch.setattr(resolve.resources, "files", lambda name: package)
    with pytest.raises(RequestError, match="without the demo model"):
        resolve_model("demo")
    (package / "data").mkdir(parents=True)
    (package / "data" / "demo.gguf").write_bytes(b"GGUF")
    assert resolve_model("demo") == package / "data" / "demo.gguf"
    with pytest.raises(RequestError, match="no GGUF model in it"):
        resolve_model("./demo")


@pytest.mark.parametrize("name", ["missing.gguf", "./missing", "a/b/c", "missing", "models/missing.gguf", "ftp://x/y"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_model(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for name in ("", "x" * 5000, "nul\0byte"):
        with pytest.raises(RequestError):
            resolve_model(name)


def test_a_missing_file_below_a_folder_hints_at_the_hub() -> None:
    with pytest.raises(RequestError, match=r"write hf://owner/name/file\.gguf"):
        resolve_model("owner/name/file.gguf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubReference("owner/name")),
        ("owner/na.me-1_b:Q4_K_M", HubReference("owner/na.me-1_b", "Q4_K_M")),
        ("owner/name@v1:q8_0", HubReference("owner/name", "q8_0", None, "v1")),
        ("hf://owner/name", HubReference("owner/name")),
        ("hf://owner/name:Q8_0", HubReference("owner/name", "Q8_0")),
        ("hf://owner/name/sub/file.gguf", HubReference("owner/name", None, "sub/file.gguf")),
        ("hf://owner/name@abc/file.gguf", HubReference("owner/name", None, "file.gguf", "abc")),
        ("hf.co/owner/name:Q8_0", HubReference("owner/name", "Q8_0")),
        ("huggingface.co/owner/name", HubReference("owner/name")),
        ("https://huggingface.co/owner/name", HubReference("owner/name")),
        ("https://huggingface.co/owner/name/", HubReference("owner/name")),
        ("https://huggingface.co/owner/name:Q8_0", HubReference("owner/name", "Q8_0")),
        ("https://huggingface.co/owner/name/tree/main", HubReference("owner/name")),
        (
            "https://huggingface.co/owner/name/resolve/main/a%20b.gguf?download=true",
            HubReference("owner/name", None, "a b.gguf"),
        ),
        ("https://hf.co/owner/name/blob/dev/x/y.GGUF", HubReference("owner/name", None, "x/y.GGUF", "dev")),
        ("https://example.org/owner/name", None),
        ("https://huggingface.co/owner", None),
        ("https://huggingface.co/owner/name/resolve/main/model.safetensors", None),
        ("https://huggingface.co/owner/name/discussions/1", None),
        ("owner", None),
        ("owner/name/extra", None),
        ("owner/name.gguf", None),
        ("./owner", None),
        ("../owner", None),
        ("/etc/passwd", None),
        ("owner/name:", None),
        ("owner/na me", None),
    ],
)
def test_references(text: str, expected: HubReference | None) -> None:
    assert HubReference.parse(text) == expected


@given(
    repo=st.from_regex(r"[A-Za-z0-9][\w-]{0,9}/[A-Za-z0-9][\w-]{0,9}", fullmatch=True).filter(str.isascii),
    quantisation=st.none() | st.sampled_from(PREFERRED_QUANTISATIONS),
    revision=st.sampled_from(["main", "v1.0", "b" * 40]),
    filename=st.none() | st.sampled_from(["m.gguf", "sub/m-Q8_0.gguf"]),
)
def test_references_are_written_as_they_are_read(
    repo: str, quantisation: str | None, revision: str, filename: str | None
) -> None:
    reference = HubReference(repo, quantisation, filename, revision)
    assert HubReference.parse(str(reference)) == reference


def test_the_mirror_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub")
    found = HubReference.parse("https://mirror.example/hub/owner/name/resolve/main/m.gguf")
    assert found == HubReference("owner/name", None, "m.gguf")


def test_the_local_cache(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, "owner/name", ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "sub/m-Q6_K.gguf", "mmproj.gguf"])
    assert resolve_model("owner/name") == snapshot / "m-Q4_K_M.gguf"
    assert resolve_model("owner/name:q8_0") == snapshot / "m-Q8_0.gguf"
    assert resolve_model("hf://owner/name/sub/m-Q6_K.gguf") == snapshot / "sub" / "m-Q6_K.gguf"
    assert resolve_model(f"owner/name@{COMMIT}:Q6_K") == snapshot / "sub" / "m-Q6_K.gguf"


def test_a_file_goes_before_a_repository(tmp_path: Path) -> None:
    cache(tmp_path, "owner/name", ["m.gguf"])
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "mine.gguf").write_bytes(b"")
    assert resolve_model("owner/name") == Path("owner/name/mine.gguf")


@pytest.mark.parametrize("name", ["owner/name:Q8_0", "owner/name@v2", "owner/other", "hf://owner/name/x.gguf"])
def test_what_the_cache_lacks_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cache(tmp_path, "owner/name", ["m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf"])
    asked: list[HubReference] = []

    def pull(repo: str, quantisation: str | None, **options: object) -> Path:
        asked.append(HubReference(repo, quantisation, options["filename"], options["revision"]))  # type: ignore[arg-type]
        return tmp_path

    monkeypatch.setattr("metallic_native.loading.hub.pull", pull)
    assert resolve_model(name) == tmp_path
    assert asked == [HubReference.parse(name)]


def test_a_cache_that_is_damaged_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path, "owner/name", ["m.gguf"])
    refs = tmp_path / "hub" / "models--owner--name" / "refs"
    for content in (b"../../../somewhere", b"\xff\xfe", b""):
        (refs / "main").write_bytes(content)
        monkeypatch.setattr("metallic_native.loading.hub.pull", lambda *args, **options: Path("pulled"))
        assert resolve_model("owner/name") == Path("pulled")


def test_grouping_files_into_models() -> None:
    names = ["b/x-00002-of-00002.gguf", "b/x-00001-of-00002.gguf", "a.gguf", "A-Q4_0.GGUF", "imatrix.gguf", "y.txt"]
    models = group_models(names)
    assert [(model.stem, model.names, model.missing) for model in models] == [
        ("A-Q4_0", ("A-Q4_0.GGUF",), ()),
        ("a", ("a.gguf",), ()),
        ("b/x", ("b/x-00001-of-00002.gguf", "b/x-00002-of-00002.gguf"), ()),
    ]
    assert group_models(["z-00003-of-00003.gguf"])[0].missing == (1, 2)
    # Parts of splits with different counts are different models.
    assert len(group_models(["z-00001-of-00001.gguf", "z-00001-of-00002.gguf"])) == 2


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Q4_K_M"),
        ("llama-2-7b.q5_0", "Q5_0"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("x_IQ4_XS", "IQ4_XS"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-f16", "F16"),
        ("BF16/model-BF16", "BF16"),
        ("model", ""),
        ("Q8_0/model", ""),
        ("faq1", ""),
    ],
)
def test_quantisations_in_names(stem: str, label: str) -> None:
    assert ModelFiles(stem, (f"{stem}.gguf",)).quantisation == label


def test_a_quantisation_may_be_named_by_the_folder() -> None:
    models = group_models(["Q8_0/model.gguf", "Q4_0/model.gguf"])
    assert choose_model(models, "q4_0", "here").names == ("Q4_0/model.gguf",)


def test_the_first_of_the_preferred_quantisations_is_chosen() -> None:
    names = [f"m-{name}.gguf" for name in reversed(PREFERRED_QUANTISATIONS)]
    for name in PREFERRED_QUANTISATIONS:
        assert choose_model(group_models(names), None, "here").quantisation == name
        names.pop()


def test_one_model_is_chosen_whatever_its_name() -> None:
    assert choose_model(group_models(["model.gguf"]), None, "here").names == ("model.gguf",)
    with pytest.raises(RequestError, match=r"^here has no GGUF model$"):
        choose_model([], None, "here")
