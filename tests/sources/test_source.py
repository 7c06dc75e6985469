"""What a user may name, and what it turns into; what is refused, and how."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch.errors import AsyncfetchError, SourceError
from asyncfetch.sources.candidates import candidates, is_index_name
from asyncfetch.sources.request import HubSource, LocalSource, Source, UrlSource, parse_source

from ..kit.canaries import PASSWORD, SIGNATURE, shown

INDEX = "model.safetensors.index.json"
COMMIT = "0123456789abcdef" * 2 + "01234567"


def parse(source: str | os.PathLike[str], **options: str) -> Source:
    """Nothing exists on this disk."""
    return parse_source(source, kind_of=lambda _path: None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("gpt2", {}, HubSource("gpt2", "main")),
        ("org/name", {}, HubSource("org/name", "main")),
        ("org/na.me_1-x", {}, HubSource("org/na.me_1-x", "main")),
        ("org/name@v1.0", {}, HubSource("org/name", "v1.0")),
        ("org/name@refs/pr/1", {}, HubSource("org/name", "refs/pr/1")),
        (f"org/name@{COMMIT}", {}, HubSource("org/name", COMMIT)),
        ("org/name", {"revision": "dev"}, HubSource("org/name", "dev")),
        ("org/name@dev", {"revision": "dev"}, HubSource("org/name", "dev")),
        ("org/name", {"subfolder": "unet"}, HubSource("org/name", "main", "unet")),
        ("org/name", {"subfolder": "/a/b/"}, HubSource("org/name", "main", "a/b")),
    ],
)
def test_repositories(source: str, options: dict[str, str], expected: Source) -> None:
    """`name` and `owner/name`, with the revision in the source or beside it."""
    assert parse(source, **options) == expected


HF = "https://huggingface.co"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"{HF}/org/name", HubSource("org/name", "main")),
        (f"{HF}/org/name/", HubSource("org/name", "main")),
        (f"{HF}/gpt2", HubSource("gpt2", "main")),
        ("HTTPS://HuggingFace.co:443/org/name#card", HubSource("org/name", "main")),
        ("https://hf.co/org/name", HubSource("org/name", "main")),
        (f"{HF}/org/name/tree/v1", HubSource("org/name", "v1")),
        (f"{HF}/gpt2/tree/v1/sub", HubSource("gpt2", "v1", "sub")),
        (f"{HF}/org/name/tree/refs%2Fpr%2F1", HubSource("org/name", "refs/pr/1")),
        (f"{HF}/org/name/tree/main/a/b%20c", HubSource("org/name", "main", "a/b c")),
        (f"{HF}/org/name/blob/main/{INDEX}", HubSource("org/name", "main", "", INDEX)),
        (f"{HF}/org/name/resolve/{COMMIT}/x.safetensors", HubSource("org/name", COMMIT, "", "x.safetensors")),
        (
            f"{HF}/org/name/resolve/main/unet/x.safetensors?download=true",
            HubSource("org/name", "main", "unet", "x.safetensors"),
        ),
        (f"{HF}/org/tree", HubSource("org/tree", "main")),
    ],
)
def test_pages_of_the_hub(source: str, expected: Source) -> None:
    """A URL copied from the site's address bar is the repository, the folder or the file that it shows."""
    assert parse(source) == expected


@pytest.mark.parametrize("kind", ["tree", "blob", "resolve"])
@pytest.mark.parametrize(
    ("path", "revision", "folder"),
    [
        ("refs/pr/3", "refs/pr/3", ""),
        ("refs%2Fpr%2F12", "refs/pr/12", ""),
        ("refs/convert/parquet", "refs/convert/parquet", ""),
        ("refs%2Fconvert%2Fparquet", "refs/convert/parquet", ""),
        ("refs/pr/3/unet/deep", "refs/pr/3", "unet/deep"),
        ("refs%2Fpr%2F3/pr/4", "refs/pr/3", "pr/4"),
        ("refs/pr/x", "refs", "pr/x"),
        ("refs/other/3", "refs", "other/3"),
        ("refs", "refs", ""),
    ],
)
@pytest.mark.parametrize("home", ["https://huggingface.co", "http://mirror:8000/hf"])
def test_revisions_of_several_parts(home: str, kind: str, path: str, revision: str, folder: str) -> None:
    """Pull requests and conversions, quoted or not; anything else is a branch, and folders in it."""
    file = None if kind == "tree" else "x.safetensors"
    url = f"{home}/org/name/{kind}/{path}" + (f"/{file}" if file else "")
    assert parse(url, endpoint=home) == HubSource("org/name", revision, folder, file)


@pytest.mark.parametrize(
    "endpoint", ["https://host/hf", "https://host/hf/", "https://host:443/a/b%20c", "https://HOST/hf"]
)
def test_the_path_of_an_endpoint_counts(endpoint: str) -> None:
    """What lies below it is a repository there; what lies beside it is a web folder, whatever it looks like."""
    home = endpoint.rstrip("/")
    assert parse(f"{home}/org/model", endpoint=endpoint) == HubSource("org/model", "main")
    assert parse(f"{home}/gpt2/", endpoint=endpoint) == HubSource("gpt2", "main")
    assert parse(f"{home}/org/model/tree/v1/a", endpoint=endpoint) == HubSource("org/model", "v1", "a")
    assert parse(f"{home}/org/model/resolve/v1/x.safetensors?download=true", endpoint=endpoint) == HubSource(
        "org/model", "v1", "", "x.safetensors"
    )
    for beside in ("https://host/other", "https://host/hfx/org/model", "https://host/a/b/c", "https://host/"):
        assert isinstance(parse(beside, endpoint=endpoint), UrlSource)
    assert parse(f"{HF}/org/model", endpoint=endpoint) == HubSource("org/model", "main")
    with pytest.raises(SourceError, match="the Hub itself"):
        parse(home, endpoint=endpoint)
    with pytest.raises(SourceError):
        parse(f"{home}/../other/x", endpoint=endpoint)


def test_a_page_with_options() -> None:
    """revision= and subfolder= complete a page's URL; revision= may repeat what the URL says, not contradict it."""
    assert parse(f"{HF}/org/name", revision="v1", subfolder="a") == HubSource("org/name", "v1", "a")
    assert parse(f"{HF}/org/name/tree/v1/a", revision="v1", subfolder="b") == HubSource("org/name", "v1", "a/b")
    with pytest.raises(SourceError, match=r"'v1'.*'v2'"):
        parse(f"{HF}/org/name/tree/v1", revision="v2")


def test_a_page_of_another_endpoint() -> None:
    """With endpoint= the pages of that server are its repositories; other servers are not, nor other ports."""
    endpoint = "http://mirror:8000"
    assert parse("http://mirror:8000/org/name/tree/v1", endpoint=endpoint) == HubSource("org/name", "v1")
    assert parse("http://mirror:8001/org/name", endpoint=endpoint) == UrlSource("http://mirror:8001/org/name/", None)
    assert parse("https://mirror:8000/org/name", endpoint=endpoint) == UrlSource("https://mirror:8000/org/name/", None)


@pytest.mark.parametrize(
    ("source", "folder", "file", "query"),
    [
        ("https://h/m", "https://h/m/", None, ""),
        ("https://h/m/", "https://h/m/", None, ""),
        ("https://h", "https://h/", None, ""),
        ("https://h/", "https://h/", None, ""),
        ("http://h:8080/a.b/m", "http://h:8080/a.b/m/", None, ""),
        (f"https://h/m/{INDEX}", "https://h/m/", INDEX, ""),
        ("https://h/m/x.safetensors", "https://h/m/", "x.safetensors", ""),
        ("https://h/x.safetensors", "https://h/", "x.safetensors", ""),
        ("https://h/m/a%20b.safetensors", "https://h/m/", "a b.safetensors", ""),
        ("https://h/m/x.safetensors?sig=a%2Fb&e=1", "https://h/m/", "x.safetensors", "sig=a%2Fb&e=1"),
        ("https://h/m?sig=1#part", "https://h/m/", None, "sig=1"),
        ("https://h/my%20m", "https://h/my%20m/", None, ""),
        ("HTTP://H/m", "http://H/m/", None, ""),
    ],
)
def test_urls(source: str, folder: str, file: str | None, query: str) -> None:
    """A folder, an index or a file on any web server; the query goes with every file of it."""
    assert parse(source) == UrlSource(folder, file, query)


def test_the_addresses_of_a_urls_files() -> None:
    """Names are quoted, the query is kept as it is, the subfolder is part of the folder."""
    source = parse("https://h/m?sig=a%2Fb", subfolder="sub folder")
    assert isinstance(source, UrlSource)
    assert source.url("a b#c?.safetensors") == "https://h/m/sub%20folder/a%20b%23c%3F.safetensors?sig=a%2Fb"


def test_what_is_shown_of_a_url() -> None:
    """As text a URL source has neither its query nor its credentials."""
    source = parse(f"https://user:{PASSWORD}@h/m/x.safetensors?sig={SIGNATURE}")
    text = str(source)
    assert not shown(repr(source))
    assert text == "https://h/m/x.safetensors"


@pytest.mark.parametrize(
    "source",
    [
        f"https://user:{PASSWORD}@h:99999/m?sig={SIGNATURE}",
        f"https://user:{PASSWORD}@h℀/m?sig={SIGNATURE}",
        f"https://user:{PASSWORD}@[::1/m?sig={SIGNATURE}",
        f"https://user:{PASSWORD}@/m?sig={SIGNATURE}",
        f"https://user:{PASSWORD}@h/m/x.bin?sig={SIGNATURE}",
    ],
    ids=["port", "character", "bracket", "no-host", "pickle"],  # no secret in the test's name
)
def test_errors_show_no_credentials(source: str) -> None:
    """An error about a URL has neither its query nor its credentials, nor has what caused it."""
    with pytest.raises(SourceError) as caught:
        parse(source, revision="main")
    assert not shown(str(caught.value))
    assert caught.value.__cause__ is None


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder org/name with an index, a shard and a pickle, as the working directory and as HOME."""
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for name in (INDEX, "x.safetensors", "x.bin"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def parse_on(source: str | os.PathLike[str], **options: str) -> Source:
    def kind_of(path: str) -> str | None:
        path = os.path.expanduser(path)
        return "folder" if os.path.isdir(path) else "file" if os.path.isfile(path) else None

    return parse_source(source, kind_of=kind_of, **options)  # type: ignore[arg-type]


def test_local_paths(disk: Path) -> None:
    """What exists is a path, also where it looks like a repository; folders, indexes and files."""
    assert parse_on("org/name") == LocalSource("org/name", None) or parse_on("org/name") == LocalSource(
        "org/name/", None
    )
    assert parse_on(disk / "org/name/x.safetensors") == LocalSource(str(disk / "org/name"), "x.safetensors")
    assert parse_on(f"./org/name/{INDEX}") == LocalSource("./org/name", INDEX)
    assert parse_on("~/org/name/x.safetensors") == LocalSource(f"{disk}/org/name", "x.safetensors")
    inner = parse_on("org", subfolder="name")
    assert isinstance(inner, LocalSource)
    assert os.path.normpath(inner.folder) == "org/name"


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("org/name/x.bin", {}, "x.bin"),
        ("org/name", {"revision": "main"}, "no revisions"),
        ("org/name/x.safetensors", {"subfolder": "name"}, "subfolder="),
        ("org", {"subfolder": "../org"}, "does not stay inside"),
        ("./nothing", {}, "nothing at"),
        ("/nothing", {}, "nothing at"),
        ("~/nothing", {}, "nothing at"),
        (Path("gpt2"), {}, "nothing at"),
    ],
)
def test_bad_local_paths(disk: Path, source: str | Path, options: dict[str, str], says: str) -> None:
    """A pickle, options that paths do not have, and paths at which there is nothing."""
    with pytest.raises(SourceError, match=says):
        parse_on(source, **options)


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("./org/naem", "./org/name"),
        ("./ogr/name", "./org/name"),
        ("~/org/name/y.safetensors", "~/org/name/x.safetensors"),
        ("~/rog/name/x.safetensors", "~/org/name/x.safetensors"),
        ("./ogr/nothing", None),  # the first name is mended, and there is nothing at that either
        ("./quite/else", None),
    ],
)
def test_misspelt_paths(disk: Path, source: str, meant: str | None) -> None:
    """What is there and called nearly so."""
    with pytest.raises(SourceError, match="nothing at") as caught:
        asyncfetch.inspect(source, cache_dir=disk)
    assert caught.value.hint == (f"Did you mean {meant!r}?" if meant else "Check the path.")


@pytest.mark.parametrize(
    ("source", "shadows"),
    [
        ("org/name", "org/name"),
        ("org", "org"),
        ("./org/name", ""),
        ("org/name/", ""),
        ("org/name/x.safetensors", ""),
        (Path("org/name"), ""),
        ("~/org/name", ""),
    ],
)
def test_what_could_be_a_repository_too(disk: Path, source: str | Path, shadows: str) -> None:
    """A folder that is written as a repository is told apart from one that is written as a path."""
    found = parse_on(source)
    assert isinstance(found, LocalSource)
    assert found.shadows == shadows
    assert parse_on("org/name@main") == HubSource("org/name", "main")


def test_a_file_with_the_name_of_a_repository(disk: Path) -> None:
    """It is no checkpoint, and the error tells how to say that the repository is meant; so with a revision."""
    (disk / "gpt2").touch()
    with pytest.raises(SourceError, match="is a file here") as caught:
        parse_on("gpt2")
    assert "gpt2@main" in caught.value.hint
    with pytest.raises(SourceError, match="no revisions") as caught:
        parse_on("org/name", revision="v2")
    assert "org/name@v2" in caught.value.hint
    assert "./org/name" in caught.value.hint


@pytest.mark.parametrize("source", ["https://u:secret@web.example/\ud800/", "org/model@\udfff", "gpt2"])
def test_half_of_a_surrogate_pair(source: str) -> None:
    """What no URL can carry is refused before it is made one, and not repeated: it may hold a password."""
    with pytest.raises(SourceError, match="no URL can carry") as caught:
        parse(source, subfolder="\ud800")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("", {}),
        ("a\0b", {}),
        (b"org/name", {}),
        ("a/b/c", {}),
        ("org/", {}),
        ("/", {}),
        ("org//name", {}),
        ("a--b/c", {}),
        ("a..b", {}),
        ("-a/b", {}),
        (".a/b", {}),
        ("org/name.git", {}),
        ("org/" + "n" * 97, {}),
        ("örg/name", {}),
        ("org/na me", {}),
        ("org/name\n", {}),
        ("org\\name", {}),
        ("C:\\models\\x", {}),
        ("ftp://bucket/key", {}),
        ("file:///etc/passwd", {}),
        ("org/name@a..b/../c", {}),
        ("org/name@/main", {}),
        ("org/name@a b", {}),
        ("org/name@a:b", {}),
        ("org/name@a^", {}),
        ("org/name@v1", {"revision": "v2"}),
        ("org/name", {"subfolder": "../x"}),
        ("org/name", {"subfolder": "a//b"}),
        ("org/name", {"subfolder": "a/./b"}),
        ("org/name", {"subfolder": "a\\b"}),
        ("org/name", {"subfolder": "a\nb"}),
        ("https://", {}),
        ("https:///m", {}),
        ("https://[::1/m", {}),
        ("https://h:99999/m", {}),
        ("https://h:port/m", {}),
        ("https://h/m", {"revision": "main"}),
        ("https://h/m/x.bin", {}),
        ("https://h/m/x.pt", {}),
        ("https://h/m/config.json", {}),
        ("https://h/m/x.safetensors", {"subfolder": "a"}),
        ("https://h/m/..%2Fx.safetensors", {}),
        ("https://h/m", {"subfolder": "../x"}),
        (f"{HF}", {}),
        (f"{HF}/", {}),
        (f"{HF}/spaces/org/name", {}),
        (f"{HF}/org/name/blob/main/x.bin", {}),
        (f"{HF}/org/name/blob/main/README.md", {}),
        (f"{HF}/org/name/tree/main/../x", {}),
        (f"{HF}/org/name/tree/main/%2e%2e/x", {}),
        (f"{HF}/org/name/tree/..", {}),
        (f"{HF}/org/name/resolve/..%2F..%2Fother/x.safetensors", {}),
        (f"{HF}/org/name/resolve/main/..%2F..%2F..%2Fother%2Fx.safetensors", {}),
        (f"{HF}/org/name/resolve/main/a%5Cb.safetensors", {}),
    ],
    ids=repr,
)
def test_bad_sources(source: str, options: dict[str, str]) -> None:
    """Nonsense and attempts to leave the repository are errors of ours, before anything is asked."""
    with pytest.raises(SourceError):
        parse(source, **options)


@given(st.text())
def test_any_text_is_a_source_or_an_error_of_ours(text: str) -> None:
    """No text makes the parser fail in another way; what it accepts as a repository is one."""
    for source in (text, f"https://{text}", f"{HF}/{text}", f"org/name@{text}"):
        try:
            parsed = parse(source)
        except SourceError:
            continue
        if isinstance(parsed, HubSource):
            assert parsed.repo_id.isascii()
            assert parsed.repo_id.count("/") <= 1
            for part in (*parsed.revision.split("/"), *parsed.subfolder.split("/"), *(parsed.file or "f").split("/")):
                assert part not in (".", "..")


@given(st.text(min_size=1).filter(lambda name: "\\" not in name))
def test_no_name_leaves_the_folder_of_a_url(name: str) -> None:
    """Whatever a file is called, its address stays below the folder, as httpx will send it; or it is refused."""
    source = UrlSource("https://h/folder/", None, "sig=1")
    try:
        url = source.url(name)
    except AsyncfetchError:
        return
    sent = httpx.URL(url)
    assert (sent.host, sent.query) == ("h", b"sig=1")
    assert sent.raw_path.startswith(b"/folder/")
    assert urlsplit(url).fragment == ""


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/./b", "/x", "a//b"])
def test_dots_do_not_leave_the_folder_of_a_url(name: str) -> None:
    """Dot segments are refused: clients resolve them, quoting does not help."""
    with pytest.raises(SourceError):
        UrlSource("https://h/folder/", None).url(name)


def test_candidates() -> None:
    """The index first, then the single files in order of their spread; then what other tools write."""
    names = candidates(None)
    assert names[:4] == [INDEX, "model.safetensors", "pytorch_model.safetensors", "model-00001-of-00001.safetensors"]
    assert len(set(names)) == len(names)
    assert all(is_index_name(name) or name.endswith(".safetensors") for name in names)
    assert "diffusion_pytorch_model.safetensors.index.json" in names[4:]


def test_candidates_of_a_variant() -> None:
    """All three spellings of a variant's index, before its single files; the plain names are not tried."""
    names = candidates("fp16")
    assert names[:4] == [
        "model.safetensors.index.fp16.json",
        "model.safetensors.fp16.index.json",
        "model.fp16.safetensors.index.json",
        "model.fp16.safetensors",
    ]
    assert len(set(names)) == len(names)
    assert all("fp16" in name and (is_index_name(name) or name.endswith(".safetensors")) for name in names)


@pytest.mark.parametrize("variant", ["", "a/b", "..", "a b", "ü", "x" * 65, "a\n"])
def test_bad_variants(variant: str) -> None:
    """A variant becomes part of a file name, so it is letters, digits, _ and - only."""
    with pytest.raises(SourceError, match="variant"):
        candidates(variant)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        (INDEX, True),
        ("model.safetensors.index.fp16.json", True),
        ("model.fp16.safetensors.index.json", True),
        ("pytorch_model.bin.index.json", True),
        ("model.safetensors", False),
        ("config.json", False),
        ("index.json", False),
        ("model.index.json.safetensors", False),
    ],
)
def test_index_names(name: str, verdict: bool) -> None:
    """An index is told from other files by its name alone."""
    assert is_index_name(name) is verdict
