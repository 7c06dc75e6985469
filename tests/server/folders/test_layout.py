"""Which repositories a directory holds."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from asyncfetch.errors import SourceError
from asyncfetch.server.folders.layout import Layout, Watched, unchanged
from asyncfetch.server.folders.revisions import commit_of, has_file, refs_of
from asyncfetch.server.folders.walk import walk

from ..trees import write

COMMIT = "c" * 40


def folder_of(root: Path, name: str, kind: str = "models", *, follow_links: bool = False) -> Path | None:
    place, _ = Layout(root, follow_links=follow_links).locate(kind, name)
    return place.folder if place else None


def paths(layout: Layout, name: str) -> list[str]:
    """The files of a model that is a folder."""
    place, _ = layout.locate("models", name)
    assert place is not None
    return [listed.path for listed in walk(layout, place.folder)[0]]


def test_names(tmp_path: Path) -> None:
    """Folders with files are models; folders of folders hold models of two parts. Datasets lie apart."""
    for file in ("single/config.json", "single/onnx/x", "org/a/x", "org/b/sub/x", ".git/x", "org/.cache/x", "a--b/x"):
        write(tmp_path / file)
    for file in ("datasets/d/x", "datasets/org/d/x", "api/x/x", "org/models--x--y/snapshots/x"):
        write(tmp_path / file)
    layout = Layout(tmp_path)
    assert layout.names("models") == ["org/a", "org/b", "single"]
    assert layout.names("datasets") == ["d", "org/d"]
    assert layout.locate("models", "datasets/d")[0] is None


def test_a_folder_without_a_file_is_no_repository(tmp_path: Path) -> None:
    """Such as one into which a download has just begun. What lands counts at once, and what goes too."""
    for file in ("org/begun/.cache/huggingface/x", "org/begun/a.incomplete", "org/begun/deep/er/.x", "datasets/o/d/.x"):
        write(tmp_path / file)
    (tmp_path / "org" / "begun" / "link.json").symlink_to(write(tmp_path.parent / "outside" / "file"))
    (tmp_path / "org" / "begun" / "folder").symlink_to(tmp_path.parent / "outside")
    (tmp_path / "org" / "begun" / "round").symlink_to(tmp_path / "org" / "begun")
    layout = Layout(tmp_path)
    assert layout.names("models") == layout.names("datasets") == []
    assert layout.locate("models", "org/begun")[0] is None
    assert folder_of(tmp_path, "org/begun", follow_links=True) == tmp_path / "org" / "begun"
    landed = write(tmp_path / "org" / "begun" / "deep" / "er" / "w.safetensors")
    assert layout.names("models") == ["org/begun"]
    there: Watched = {str(landed.parent): None}
    while not unchanged(there):  # until a change would show
        place, watched = layout.locate("models", "org/begun")
        assert place is not None
        there = {folder: state for folder, state in watched.items() if folder == str(landed.parent)}
        assert there
    landed.unlink()
    assert not unchanged(there)
    assert layout.locate("models", "org/begun")[0] is None


def test_a_root_that_is_one_model(tmp_path: Path) -> None:
    """A checkpoint in the directory itself makes it one model with two names, and only that."""
    root = tmp_path / "my model"
    write(root / "model.safetensors")
    write(root / "sub" / "x")
    write(root / "datasets" / "d" / "x")
    assert Layout(root).names("models") == ["my-model"]
    assert Layout(root).names("datasets") == []
    assert folder_of(root, "my-model") == folder_of(root, "local/my-model") == root
    assert folder_of(root, "sub") is folder_of(root, "d", "datasets") is None


@pytest.mark.parametrize(
    "name", ["..", "../x", "org/..", "org/../org", ".git", "org", "org/a/b", "", "org/", "/etc", "ORG/a", "org/a\0"]
)
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    """No name leads out of the directory, into a hidden folder, or to a folder of folders."""
    write(tmp_path / "root" / "org" / "a" / "x")
    write(tmp_path / "root" / ".git" / "x")
    write(tmp_path / "x" / "x")
    assert folder_of(tmp_path / "root", name) is None


def test_links_of_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link inside the directory is followed, one to outside only where that is wanted; what is left out is said."""
    caplog.set_level(logging.INFO, "asyncfetch.server")
    inside = write(tmp_path / "root" / "org" / "a" / "x").parent
    outside = write(tmp_path / "outside" / "x").parent
    write(outside / "sub" / "y")
    (tmp_path / "root" / "org" / "alias").symlink_to(inside)
    for link in ("org/escape", "escape"):
        (tmp_path / "root" / link).symlink_to(outside)
    for link, target in {"itself": tmp_path / "root", "above": tmp_path}.items():
        (tmp_path / "root" / link).symlink_to(target)
    (inside / "link").symlink_to(outside / "x")
    (inside / "folder").symlink_to(outside / "sub")
    (outside / "sub" / "circle").symlink_to(inside)
    root = tmp_path / "root"
    assert folder_of(root, "org/alias") == inside
    names = ("org/escape", "escape", "itself", "above")
    assert [folder_of(root, name) for name in names] == [None, None, None, None]
    assert [folder_of(root, name, follow_links=True) for name in names] == [outside, outside, None, None]
    assert paths(Layout(root), "org/a") == ["x"]
    assert paths(Layout(root, follow_links=True), "org/a") == ["folder/y", "link", "x"]
    assert (
        f"{root / 'org' / 'escape'} is left out: it is a link to {outside}, outside of {root}; see --follow-links."
        in caplog.messages
    )


@pytest.mark.parametrize("root", ["missing", "file"])
def test_a_bad_root(tmp_path: Path, root: str) -> None:
    """What is not a directory is refused with its name."""
    write(tmp_path / "file")
    with pytest.raises(SourceError, match=root):
        Layout(tmp_path / root)


def test_a_hub_cache_and_its_parts(tmp_path: Path) -> None:
    """A cache, a repository of it, and what a download printed are each served as what they are."""
    cache = tmp_path / "hub"
    blob = write(cache / "models--org--name" / "blobs" / hashlib.sha256(b"w").hexdigest(), b"w")
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    write(snapshot / "sub" / "config.json")
    (snapshot / "w.safetensors").symlink_to(f"../../blobs/{blob.name}")
    (snapshot / "sub" / "w.safetensors").symlink_to(f"../../../blobs/{blob.name}")
    write(cache / "datasets--d" / "snapshots" / COMMIT / "x")
    write(cache / ".locks" / "models--org--name" / "x")
    for other in ("models--a--b--c", "models--org--..", "spaces--org--name"):
        write(cache / other / "snapshots" / COMMIT / "x")
    write(cache / "models--org--empty" / "refs" / "main", COMMIT.encode())
    assert Layout(cache).names("models") == ["org/name"]
    assert Layout(cache).names("datasets") == ["d"]
    for root in (cache, cache / "models--org--name", cache / "models--org--name" / "snapshots", snapshot):
        layout = Layout(root)
        assert layout.names("models") == ["org/name"]
        place, _ = layout.locate("models", "org/name")
        assert place is not None
        assert (place.cached, commit_of(place, "main"), commit_of(place, COMMIT)) == (True, COMMIT, COMMIT)
        assert refs_of(place) == {"main": COMMIT}
        found = {listed.path: listed.promised for listed in walk(layout, snapshot, blobs=place.folder / "blobs")[0]}
        assert found == {"w.safetensors": blob.name, "sub/w.safetensors": blob.name, "sub/config.json": None}
    assert Layout(snapshot).locate("models", "name")[0] is None
    assert Layout(snapshot / "sub").names("models") == ["sub"]
    assert paths(Layout(snapshot / "sub"), "sub") == ["config.json", "w.safetensors"]


def test_one_snapshot_of_several(tmp_path: Path) -> None:
    """Of a served snapshot no other commit is there, and `main` is what was downloaded, whatever the ref says now."""
    for commit in (COMMIT, "d" * 40):
        write(tmp_path / "models--m" / "snapshots" / commit / "x")
    write(tmp_path / "models--m" / "refs" / "main", b"d" * 40)
    place, _ = Layout(tmp_path / "models--m" / "snapshots" / COMMIT).locate("models", "m")
    assert place is not None
    assert (commit_of(place, "main"), commit_of(place, "d" * 40), refs_of(place)) == (COMMIT, None, {"main": COMMIT})


def test_what_a_commit_lacks(tmp_path: Path) -> None:
    """A cache knows by a full listing or by a mark that its source has no such file; else it does not know."""
    repository = tmp_path / "models--m"
    write(repository / "snapshots" / COMMIT / "x")
    write(repository / ".no_exist" / COMMIT / "marked")
    place, _ = Layout(tmp_path).locate("models", "m")
    assert place is not None
    assert [has_file(place, COMMIT, path) for path in ("marked", "unknown", "../x")] == [False, None, False]
    listing = b'{"format_version": 1, "files": {"sub/there": {"size": 1, "blob_id": "%s"}}}' % (b"a" * 40)
    write(repository / "trees" / f"{COMMIT}.json", listing)
    assert [has_file(place, COMMIT, path) for path in ("sub/there", "sub", "unknown")] == [True, True, False]
