"""The cache on disk: where things are, what is believed of it, what is written, and what is left alone."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from filelock import Timeout
from hypothesis import example, given
from hypothesis import strategies as st

from asyncfetch.errors import CorruptError, DiskFullError, SourceError, StorageError, storage_errors
from asyncfetch.reasons import Writing
from asyncfetch.storage import cache as module
from asyncfetch.storage.cache import RepoCache, TreeEntry, is_commit, path_inside
from asyncfetch.storage.checksums import Checksum, checksum_of_etag
from asyncfetch.storage.roots import cache_root, url_repo_id

from ..kit.canaries import PASSWORD
from ..kit.users import as_nobody, public_folder

COMMIT, OTHER = "c" * 40, "d" * 40
ETAG, GIT = "e" * 64, "a" * 40


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> RepoCache:
    """An empty cache of one repository, with and without symbolic links."""
    made = RepoCache(tmp_path / "hub", "org/name", symlinks=request.param)
    made.prepare()
    return made


@pytest.fixture
def linked(tmp_path: Path) -> RepoCache:
    """An empty cache with symbolic links."""
    made = RepoCache(tmp_path / "hub", "org/name", symlinks=True)
    made.prepare()
    return made


def put(
    cache: RepoCache, data: bytes = b"weights", etag: str = ETAG, commit: str = COMMIT, file: str = "m.safetensors"
) -> Path:
    partial = cache.partial(etag)
    partial.write_bytes(data)
    return cache.publish(partial, etag, commit, file)


def listing(folder: Path) -> set[str]:
    """All files and links below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


# -- where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "/home/x/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "", "HF_HOME": ""}, "/home/x/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "~/a"}, "/home/x/a"),
        ({"HF_HOME": "$PLACE/c"}, "/place/c/hub"),
    ],
)
def test_the_root(environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of huggingface_hub, in its order; ~ and variables are expanded."""
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("PLACE", "/place")
    assert cache_root(environ) == Path(expected)
    assert cache_root(environ, "~/mine") == Path("/home/x/mine")


def test_names(tmp_path: Path) -> None:
    """Folders and files have the names that huggingface_hub gives them; ours are among its *.incomplete."""
    cache = RepoCache(tmp_path, "org/name")
    assert cache.folder == tmp_path / "models--org--name"
    assert RepoCache(tmp_path, "gpt2").folder == tmp_path / "models--gpt2"
    assert cache.blob(ETAG) == cache.folder / "blobs" / ETAG
    assert cache.partial(ETAG).name == f"{ETAG}.asyncfetch.incomplete"
    assert cache.snapshot(COMMIT) == cache.folder / "snapshots" / COMMIT


@pytest.mark.parametrize(
    "text", ["", "main", "c" * 39, "c" * 41, "C" * 40, "g" * 40, "c" * 40 + "\n", "١" * 40, "../" + "c" * 37, "\ud800"]
)
def test_server_chosen_names_never_become_paths(linked: RepoCache, text: str) -> None:
    """A commit or an etag that is not exactly hex digits is refused by everything that makes a path of it."""
    assert not is_commit(text)
    assert checksum_of_etag(text) is None
    for commits in (linked.snapshot, lambda c: linked.find(c, "f"), lambda c: linked.known_absent(c, "f"), linked.tree):
        with pytest.raises(CorruptError):
            commits(text)
    for etags in (linked.blob, linked.partial, linked.lock, lambda e: linked.add_small(b"", e, COMMIT, "f")):
        with pytest.raises(CorruptError):
            etags(text)
    linked.write_ref("main", COMMIT)
    with pytest.raises(CorruptError):
        linked.write_ref("main", text)


def test_what_an_etag_promises() -> None:
    """64 digits are SHA-256, 40 are git's SHA-1 of the file."""
    assert checksum_of_etag(ETAG) == Checksum("sha256", ETAG)
    assert checksum_of_etag(GIT) == Checksum("git-sha1", GIT)


@given(st.text())
def test_a_path_inside_stays_inside(text: str) -> None:
    """What is accepted has no part that leads elsewhere, on this or another system; it is kept as it is."""
    try:
        path = path_inside(text)
    except SourceError:
        return
    assert not path.is_absolute()
    assert str(path) == text == os.path.normpath(text)
    assert not set(text) & {"\\", "\0", "\n"}
    assert ".." not in text.split("/")


@pytest.mark.parametrize(
    "file",
    [
        *("", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "a\\b", "a\0", "\ud800"),
        *("C:x", "a/c:/b", ".:", "1:x", "é:"),  # to Windows, any one character before a colon is a drive
    ],
)
def test_bad_paths(cache: RepoCache, file: str) -> None:
    """Neither files nor refs get out of their folders, be it to read or to write."""
    for call in (
        lambda: cache.find(COMMIT, file),
        lambda: cache.known_absent(COMMIT, file),
        lambda: cache.remember_absent(COMMIT, file),
        lambda: cache.write_ref(file, COMMIT),
        lambda: cache.commit_of(file),
        lambda: cache.link(ETAG, COMMIT, file),
    ):
        with pytest.raises(SourceError):
            call()


def test_repositories_of_urls() -> None:
    """A URL has a name of its own in the reserved owner `url`, legible, and without credentials."""
    name = url_repo_id("https://models.example.com:8443/a/b/")
    assert re.fullmatch(r"url/models-example-com-8443-[0-9a-f]{16}", name)
    assert url_repo_id("https://models.example.com:8443/a/c/") != name
    assert url_repo_id(f"https://user:{PASSWORD}@models.example.com:8443/a/b/") == name


@given(st.text("abc.-_:@[]é", max_size=90))
@example("[::]@[")
def test_repositories_of_urls_survive_the_folder_name(host: str) -> None:
    """The folder's name can be turned back into the name: no double hyphen in it, whatever the host."""
    name = url_repo_id(f"https://{host}/x/")
    assert RepoCache(Path("/"), name).name.removeprefix("models--").split("--") == name.split("/")


# -- files -----------------------------------------------------------------------------------------


def test_publish_and_find(cache: RepoCache) -> None:
    """A published file is found under its commit, and under no other; nothing else is left."""
    path = put(cache)
    assert cache.find(COMMIT, "m.safetensors") == path == cache.snapshot(COMMIT) / "m.safetensors"
    assert path.read_bytes() == b"weights"
    assert cache.find(OTHER, "m.safetensors") is None
    assert not cache.partial(ETAG).exists()
    if cache.symlinks():
        assert os.readlink(path) == f"../../blobs/{ETAG}"
        assert cache.checksum_of(path) == Checksum("sha256", ETAG)
    else:
        assert not path.is_symlink()
        assert cache.checksum_of(path) is None
        assert os.listdir(cache.folder / "blobs") == []


def test_what_another_run_published_stays(cache: RepoCache) -> None:
    """The same file a second time: the first stays, which others may have mapped, and the second goes."""
    path = put(cache)
    before = path.stat()
    partial = cache.partial(ETAG)
    partial.write_bytes(b"weights")
    assert cache.publish(partial, ETAG, COMMIT, "m.safetensors", size=7) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not partial.exists()
    assert cache.publish(partial, ETAG, COMMIT, "m.safetensors", size=7) == path, "its name was taken in between"
    partial.write_bytes(b"all the weights")
    assert cache.publish(partial, ETAG, COMMIT, "m.safetensors", size=15).read_bytes() == b"all the weights"
    with pytest.raises(StorageError):
        cache.publish(partial, OTHER, COMMIT, "n.safetensors", size=7)


def test_links_are_relative_to_their_depth(linked: RepoCache) -> None:
    """Links go up one more step for each subfolder, so the cache may be moved as a whole."""
    path = put(linked, file="a/b/m.safetensors")
    assert os.readlink(path) == f"../../../../blobs/{ETAG}"
    moved = linked.root.rename(linked.root.with_name("moved"))
    found = RepoCache(moved, "org/name").find(COMMIT, "a/b/m.safetensors")
    assert found is not None
    assert found.read_bytes() == b"weights"


def test_a_link_without_its_blob_is_not_found(linked: RepoCache) -> None:
    """A pruned blob means that the file is not here; publishing again repairs it."""
    put(linked)
    linked.blob(ETAG).unlink()
    assert linked.find(COMMIT, "m.safetensors") is None
    assert linked.whole_blob(ETAG, 7) is None
    assert put(linked).read_bytes() == b"weights"


def test_a_blob_of_another_commit_is_linked(cache: RepoCache) -> None:
    """What another commit brought needs no download: a link where links are, a copy where they are not."""
    (cache.folder / "blobs" / ETAG).write_bytes(b"weights")
    assert cache.whole_blob(ETAG, 7) == cache.blob(ETAG)
    assert cache.whole_blob(ETAG, 8) is None, "of another size it is not trusted"
    path = cache.link(ETAG, OTHER, "sub/m.safetensors")
    assert cache.link(ETAG, OTHER, "sub/m.safetensors") == path
    assert path.read_bytes() == b"weights"
    assert path.is_symlink() is cache.symlinks()
    assert os.listdir(cache.folder / "blobs") == [ETAG]


def test_a_wrong_link_is_replaced(linked: RepoCache, tmp_path: Path) -> None:
    """What stands at the snapshot path is replaced, never written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    pointer = linked.snapshot(COMMIT) / "m.safetensors"
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(victim)
    assert put(linked) == pointer
    assert pointer.read_bytes() == b"weights"
    assert victim.read_text() == "precious"


def test_a_blob_that_is_a_link_is_replaced(linked: RepoCache, tmp_path: Path) -> None:
    """A blob may be a link to a payload that several repositories share: the payload stays as it is."""
    payload = tmp_path / "payload"
    payload.write_bytes(b"shared!")
    linked.blob(ETAG).symlink_to(payload)
    put(linked)
    assert payload.read_bytes() == b"shared!"
    assert not linked.blob(ETAG).is_symlink()


def test_small_files(cache: RepoCache) -> None:
    """An index is published whole; the same bytes are not written again, other bytes replace it."""
    first = cache.add_small(b"{}", GIT, COMMIT, "index.json")
    inode = first.stat().st_ino
    assert cache.add_small(b"{}", GIT, COMMIT, "index.json") == first
    assert (first.read_bytes(), first.stat().st_ino) == (b"{}", inode)
    cache.add_small(b"[]", "b" * 40, COMMIT, "index.json")
    assert first.read_bytes() == b"[]"
    assert not [name for name in listing(cache.root) if "incomplete" in name]


@pytest.mark.parametrize("failing", ["fsync", "replace", "symlink"])
def test_a_failure_leaves_no_temporary_file(linked: RepoCache, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while an index is published is an error of ours, and what was begun is removed."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, failing, fail)
    with pytest.raises(DiskFullError) as caught:
        linked.add_small(b"{}", GIT, COMMIT, "index.json")
    assert isinstance(caught.value.__cause__, OSError)
    assert not [name for name in listing(linked.folder) if "incomplete" in name]


def test_prepare_is_idempotent(linked: RepoCache) -> None:
    """The marker for backup tools is written once and begins as its specification says."""
    tag = linked.root / "CACHEDIR.TAG"
    assert tag.read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    tag.write_text("mine")
    linked.prepare()
    assert tag.read_text() == "mine"
    tag.write_text("")  # as a kill leaves it
    linked.prepare()
    assert tag.read_text().startswith("Signature: ")


# -- refs and absences -----------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "feature/a/b"])
def test_refs(cache: RepoCache, revision: str) -> None:
    """40 digits without a newline, in folders for names with slashes; a later commit replaces an earlier one."""
    assert cache.commit_of(revision) is None
    cache.write_ref(revision, COMMIT)
    cache.write_ref(revision, OTHER)
    assert cache.commit_of(revision) == OTHER
    assert (cache.folder / "refs" / revision).read_bytes() == OTHER.encode()
    assert listing(cache.folder / "refs") == {revision}


def test_a_commit_is_its_own_ref(cache: RepoCache) -> None:
    """A full hash needs no ref and gets none."""
    cache.write_ref(COMMIT, COMMIT)
    assert cache.commit_of(COMMIT) == COMMIT
    assert not (cache.folder / "refs").exists()


def test_a_ref_that_was_never_finished_is_no_ref(linked: RepoCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill before the rename leaves nothing in refs/, where huggingface_hub takes any file for a ref."""

    def killed(*_: object) -> None:
        raise SystemExit

    linked.prepare()
    monkeypatch.setattr(module.os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", killed)  # and nobody tidies up
    with pytest.raises(SystemExit):
        linked.write_ref("main", COMMIT)
    assert listing(linked.folder / "refs") == set()
    assert all(name.endswith(".incomplete") for name in listing(linked.folder / "blobs"))


def test_a_ref_where_there_are_no_blobs(tmp_path: Path) -> None:
    """A cache that was copied without them takes a ref all the same."""
    copied = RepoCache(tmp_path / "hub", "org/name")
    copied.snapshot(COMMIT).mkdir(parents=True)
    copied.write_ref("main", COMMIT)
    assert copied.commit_of("main") == COMMIT


def test_an_unchanged_ref_is_not_written(cache: RepoCache) -> None:
    """So a cache that may only be read stays usable."""
    cache.write_ref("main", COMMIT)
    before = (cache.folder / "refs/main").stat()
    cache.write_ref("main", COMMIT)
    after = (cache.folder / "refs/main").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # its time of access may differ


@pytest.mark.parametrize("content", [b"", b"main", b"c" * 39, b"\xff" * 40, b"../../x"])
def test_bad_refs_are_no_refs(cache: RepoCache, content: bytes) -> None:
    """What is no commit in a ref counts as nothing, and is replaced."""
    (cache.folder / "refs").mkdir()
    (cache.folder / "refs/main").write_bytes(content)
    assert cache.commit_of("main") is None
    cache.write_ref("main", COMMIT)
    assert cache.commit_of("main") == COMMIT


def test_a_ref_with_a_newline_is_mended(cache: RepoCache) -> None:
    """Such a ref, from an editor or a script, is understood here and breaks huggingface_hub: writing it repairs it."""
    (cache.folder / "refs").mkdir()
    (cache.folder / "refs/main").write_text(COMMIT + "\n")
    assert cache.commit_of("main") == COMMIT
    cache.write_ref("main", COMMIT)
    assert (cache.folder / "refs/main").read_text() == COMMIT


def test_absences(cache: RepoCache) -> None:
    """That a commit lacks a file is remembered for that commit and that file."""
    assert not cache.known_absent(COMMIT, "sub/x.json")
    cache.remember_absent(COMMIT, "sub/x.json")
    assert cache.known_absent(COMMIT, "sub/x.json")
    assert not cache.known_absent(OTHER, "sub/x.json")
    assert not cache.known_absent(COMMIT, "x.json")
    assert (cache.folder / ".no_exist" / COMMIT / "sub/x.json").read_bytes() == b""


def write_tree(cache: RepoCache, content: object) -> None:
    folder = cache.folder / "trees"
    folder.mkdir(exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content, indent=1).encode()
    (folder / f"{COMMIT}.json").write_bytes(raw)


TREE = {
    "format_version": 1,
    "files": {
        "config.json": {"size": 3, "blob_id": GIT},
        "m.safetensors": {"size": 134, "blob_id": GIT, "lfs_sha256": ETAG, "lfs_size": 7, "xet_hash": "9" * 64},
        "odd": {"size": 1, "blob_id": "xyz"},
    },
}


def test_trees(cache: RepoCache) -> None:
    """huggingface_hub's listing of a commit gives sizes, hashes and, being whole, absences."""
    assert cache.tree(COMMIT) is None
    write_tree(cache, TREE)
    assert cache.tree(COMMIT) == {
        "config.json": TreeEntry(3, Checksum("git-sha1", GIT)),
        "m.safetensors": TreeEntry(7, Checksum("sha256", ETAG)),
        "odd": TreeEntry(1, None),
    }
    assert cache.tree(OTHER) is None
    assert cache.known_absent(COMMIT, "model.safetensors")
    assert not cache.known_absent(COMMIT, "m.safetensors")
    assert not cache.known_absent(OTHER, "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {**TREE, "format_version": 2},
        {"files": {}},
        {"format_version": 1},
        {"format_version": 1, "files": []},
        {"format_version": 1, "files": {"a": {}}},
        {"format_version": 1, "files": {"a": {"size": "many", "blob_id": GIT}}},
        {"format_version": 1, "files": {"a": None}},
        [],
        None,
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda content: str(content)[:50],
)
def test_bad_trees_are_no_trees(cache: RepoCache, content: object) -> None:
    """A listing of another version, or damaged, is none: nothing is known to be absent by it."""
    write_tree(cache, content)
    assert cache.tree(COMMIT) is None
    assert not cache.known_absent(COMMIT, "x")


# -- locks, quarantine, links ----------------------------------------------------------------------


def test_the_lock_is_the_one_of_huggingface_hub(linked: RepoCache) -> None:
    """At the same path; a second holder is told so at once; the file stays, as theirs does."""
    path = linked.root / ".locks" / "models--org--name" / f"{ETAG}.lock"
    first, second = linked.lock(ETAG), linked.lock(ETAG)
    with first.acquire(timeout=0):
        assert path.exists()
        with pytest.raises(Timeout):
            second.acquire(timeout=0)
    with second.acquire(timeout=0):
        pass
    assert path.exists()


def test_last_write(linked: RepoCache) -> None:
    """Progress of any tool on a blob is seen, by the time of its newest unfinished file."""
    assert linked.last_write(ETAG) == 0
    ours, theirs = linked.partial(ETAG), linked.folder / "blobs" / f"{ETAG}.01234567.incomplete"
    for path, when in ((ours, 1000), (theirs, 2000), (linked.folder / "blobs" / f"{'f' * 64}.0.incomplete", 3000)):
        path.touch()
        os.utime(path, (when, when))
    assert linked.last_write(ETAG) == 2000


def test_free_bytes_before_there_is_a_cache(tmp_path: Path) -> None:
    """Where the cache will be counts, also while none of its folders exists."""
    assert RepoCache(tmp_path / "a" / "b", "org/name").free_bytes() > 0


def test_a_wrong_file(cache: RepoCache) -> None:
    """It is not found any more, stays until another one takes its name, and as it is for who has it mapped."""
    path = put(cache, b"strange", file="sub/m.safetensors")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        cache.wrong.add(path)
        assert cache.find(COMMIT, "sub/m.safetensors") is None
        assert cache.whole_blob(ETAG) is None
        assert path.read_bytes() == b"strange"
        partial = cache.partial(ETAG)
        partial.write_bytes(b"weights")
        assert cache.publish(partial, ETAG, COMMIT, "sub/m.safetensors", size=7) == path
        assert os.read(descriptor, 10) == b"strange"
    finally:
        os.close(descriptor)
    assert cache.find(COMMIT, "sub/m.safetensors") == path
    assert path.read_bytes() == b"weights"
    assert cache.wrong.paths == []
    assert not any("incomplete" in name for name in listing(cache.folder))


def test_a_wrong_file_that_another_run_has_replaced(cache: RepoCache) -> None:
    """What is wrong is the file and not its name: a good one that came meanwhile is found, and stays."""
    path = put(cache, b"strange")
    cache.wrong.add(path)
    put(RepoCache(cache.root, "org/name", symlinks=cache.symlinks()))
    assert cache.find(COMMIT, "m.safetensors") == path
    before = path.stat().st_ino
    partial = cache.partial(ETAG)
    partial.write_bytes(b"weights")
    cache.publish(partial, ETAG, COMMIT, "m.safetensors", size=7)
    assert path.stat().st_ino == before


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("where", ["blob", "snapshot"])
def test_a_folder_in_the_place_of_a_file(cache: RepoCache, where: str, filled: bool) -> None:
    """It makes way. What is in it is kept beside."""
    place = cache.blob(ETAG) if where == "blob" and cache.symlinks() else cache.snapshot(COMMIT) / "m.safetensors"
    place.mkdir(parents=True)
    if filled:
        (place / "notes.txt").write_text("mine")
    assert cache.find(COMMIT, "m.safetensors") is None
    assert put(cache).read_bytes() == b"weights"
    kept = [path.read_text() for path in cache.folder.rglob("*.aside/notes.txt")]
    assert kept == (["mine"] if filled else [])


@pytest.mark.parametrize("kind", ["shared store", "by hand"])
def test_what_is_wrong_is_removed_without_that_of_others(linked: RepoCache, tmp_path: Path, kind: str) -> None:
    """The payload behind a blob, or a file that someone linked into the snapshot, stays: only our names go."""
    payload = tmp_path / "hub" / "blobs" / "ab" / "payload"
    payload.parent.mkdir(parents=True)
    payload.write_bytes(b"weights")
    pointer = linked.snapshot(COMMIT) / "m.safetensors"
    pointer.parent.mkdir(parents=True)
    if kind == "shared store":
        linked.blob(ETAG).symlink_to("../../blobs/ab/payload")
        pointer.symlink_to(f"../../blobs/{ETAG}")
    else:
        pointer.symlink_to(payload)
    assert linked.find(COMMIT, "m.safetensors") == pointer
    linked.wrong.add(pointer)
    linked.drop_wrong()
    assert not os.path.lexists(pointer)
    assert not os.path.lexists(linked.blob(ETAG))
    assert payload.read_bytes() == b"weights"
    assert linked.find(COMMIT, "m.safetensors") is None
    assert linked.whole_blob(ETAG, 7) is None


@pytest.mark.parametrize(("value", "links"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_links_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, links: bool) -> None:
    """HF_HUB_DISABLE_SYMLINKS is obeyed as huggingface_hub does."""
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", value)
    assert RepoCache(tmp_path, "org/name").symlinks() is links


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where links cannot be made files are placed; the probe leaves nothing behind."""
    assert RepoCache(tmp_path, "org/name").symlinks()
    assert listing(tmp_path) == set()

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "symlink", refuse)
    cache = RepoCache(tmp_path, "org/other")
    cache.prepare()
    assert not cache.symlinks()
    assert not put(cache).is_symlink()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "word"), [(errno.ENOSPC, "room"), (errno.EDQUOT, "quota")])
def test_no_room(code: int, word: str) -> None:
    """A full disk and a full quota are one error, with the path, the need and what is used up."""
    with pytest.raises(DiskFullError, match=f"7 bytes are needed and no {word} is left") as caught:  # noqa: SIM117
        with storage_errors("/x", needed=7):
            raise OSError(code, os.strerror(code))
    assert (caught.value.path, caught.value.needed) == ("/x", 7)


def test_a_file_that_may_not_be_so_large() -> None:
    """What its file system or a limit does not allow is no lack of room."""
    with pytest.raises(StorageError, match="a file of this size is more than its file system") as caught:  # noqa: SIM117
        with storage_errors("/x", needed=7):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert not isinstance(caught.value, DiskFullError)


def test_the_path_that_refused(tmp_path: Path) -> None:
    """The system's own word counts, and where something may not be made, the folder that does not allow it."""
    missing = tmp_path / "a" / "b"
    with pytest.raises(StorageError, match="No such file") as caught, storage_errors("/x"):
        missing.read_bytes()
    assert caught.value.path == str(missing)
    advice: dict[Writing, str] = {"cache": "cache_dir=", "output": "another folder", "removal": "its owner"}
    for writing, instead in advice.items():
        with pytest.raises(StorageError) as caught, storage_errors("/x", writing=writing):
            raise PermissionError(errno.EACCES, "Permission denied", str(missing))
        assert caught.value.path == str(tmp_path)
        assert instead in caught.value.hint
        assert ("cache_dir=" in caught.value.hint) is (writing == "cache")
    with pytest.raises(StorageError) as caught, storage_errors("/x"):
        os.rename(missing, tmp_path / "c")
    assert caught.value.path == "/x"


@pytest.mark.parametrize("what", ["link", "file", "file above"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, what: str) -> None:
    """What is in the way is named, and what to do about it."""
    cache = tmp_path / "in the way"
    if what == "link":
        cache.symlink_to(tmp_path / "not mounted")
    else:
        cache.write_text("x")
    with pytest.raises(StorageError, match=r"a link to .*not mounted, which is not there|it is no folder") as caught:
        RepoCache(cache / "deep" / "er" if what == "file above" else cache, "org/name").prepare()
    assert caught.value.path == str(cache)
    assert caught.value.hint
    assert not (tmp_path / "not mounted").exists()


def test_other_errors_of_the_disk() -> None:
    """Any other OSError becomes ours with its words; what is no OSError passes."""
    with pytest.raises(StorageError, match=r"/x: Permission denied\.") as caught, storage_errors("/x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert isinstance(caught.value.__cause__, PermissionError)
    with pytest.raises(StorageError, match="odd"), storage_errors("/x"):
        raise OSError("odd")
    with pytest.raises(ZeroDivisionError), storage_errors("/x"):
        raise ZeroDivisionError


def test_a_cache_that_may_not_be_read() -> None:
    """A folder without permission is an error of ours that names it, not a file that is missing."""
    prepare = (
        "import sys; from pathlib import Path; from asyncfetch.storage.cache import RepoCache\n"
        "from asyncfetch.errors import StorageError"
    )
    code = (
        "cache = RepoCache(Path(sys.argv[1]), 'org/name')\n"
        "for call in (lambda: cache.find('c' * 40, 'm.safetensors'), lambda: cache.whole_blob('e' * 64, 7)):\n"
        "    try: print(call() is not False)\n"
        "    except StorageError as error: print(error.path, error.reason)\n"
    )
    with public_folder() as root:
        cache = RepoCache(root, "org/name", symlinks=True)
        cache.prepare()
        put(cache)
        cache.remember_absent(COMMIT, "x")
        assert as_nobody(prepare, code, root).stdout.split() == ["True", "True"]
        closed = ("snapshots", "blobs")
        for folder in closed:
            (cache.folder / folder).chmod(0o700)
        run = as_nobody(prepare, code, root)
        assert run.returncode == 0, run.stderr
        for line, folder in zip(run.stdout.splitlines(), closed, strict=True):
            assert line.startswith(str(cache.folder / folder))
            assert line.endswith("Permission denied")


def test_a_name_that_is_too_long(cache: RepoCache) -> None:
    """What the file system cannot name is an error of ours."""
    put(cache)
    with pytest.raises(StorageError):
        cache.find(COMMIT, "n" * 300)
    cache.remember_absent(COMMIT, "n" * 300)  # which only helps
    assert not cache.known_absent(COMMIT, "n" * 300)
