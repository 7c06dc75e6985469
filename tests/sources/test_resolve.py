"""Finding a checkpoint in a repository, at a URL and on disk: order, fallback, refusals, hashes, warnings."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    CheckpointNotFoundError,
    ChecksumMismatchError,
    CorruptError,
    InvalidHeaderError,
    InvalidIndexError,
    MissingTensorError,
    OfflineError,
    ProtocolError,
    RevisionNotFoundError,
    SelectionError,
    ServerError,
    ShardNotFoundError,
    SourceError,
    StalledError,
)
from asyncfetch.sources.located import PREFIX_LIMIT, Located
from asyncfetch.sources.request import candidates

from ..kit.canaries import SIGNATURE
from ..kit.fault_server import (
    COMMIT,
    QUICK,
    Answer,
    Chunked,
    Fault,
    FaultServer,
    Headers,
    IgnoreRange,
    Resource,
    Seen,
    Stall,
    Status,
    Truncate,
)
from ..kit.files import index_bytes, safetensors_bytes, sharded_bytes
from ..kit.sessions import open_session

pytestmark = pytest.mark.anyio

FAST = replace(QUICK, attempts=2, read_timeout=0.2)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {f"layer.{n}.weight": np.arange(n, n + 50, dtype=np.float32) for n in range(4)}
FILES = sharded_bytes(TENSORS, 2)
ONE = safetensors_bytes({"single": np.zeros(3)})


async def find(source: str | Path, *, endpoint: str = "http://127.0.0.1:9", cache: Path, **options: Any) -> Located:
    """What `source` turns out to be."""
    policy = options.pop("policy", FAST)
    async with open_session(source, endpoint=endpoint, cache_dir=cache, policy=policy, **options) as session:
        return await session.locate()


Place = Callable[[dict[str, bytes]], tuple[str, dict[str, Any]]]


@pytest.fixture(params=["hub", "web", "disk"])
def place(request: pytest.FixtureRequest, server: FaultServer, tmp_path: Path) -> Place:
    """Puts files where they can be found, and tells the source and the options for `find`."""

    def put(files: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
        options: dict[str, Any] = {"cache": tmp_path / "cache"}
        if request.param == "hub":
            server.hub("org/model", files)
            return "org/model", {**options, "endpoint": server.url}
        if request.param == "web":
            return server.web("/models", files), options
        for name, content in files.items():
            (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "model" / name).write_bytes(content)
        (tmp_path / "model").mkdir(exist_ok=True)
        return str(tmp_path / "model"), options

    return put


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every name below `folder`, with the bytes of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def asked(server: FaultServer) -> list[str]:
    """The file names that were asked for, storage aside."""
    return [seen.path.rpartition("/")[2] for seen in server.seen if not seen.second]


# -- the order of the candidates -------------------------------------------------------------------


async def test_the_index_comes_first(place: Place) -> None:
    """Shards are the index's, in its order, with sizes and headers."""
    source, options = place(FILES)
    located = await find(source, **options)
    assert located.index is not None
    assert located.index.file == INDEX
    assert [file.name for file in located.files] == [A, B]
    assert [file.size for file in located.files] == [len(FILES[A]), len(FILES[B])]
    assert [list(file.header.tensors) for file in located.files if file.header] == [
        ["layer.0.weight", "layer.2.weight"],
        ["layer.1.weight", "layer.3.weight"],
    ]


async def test_the_index_wins_over_a_single_file(place: Place) -> None:
    """A single file beside the index is not read."""
    source, options = place({**FILES, SINGLE: ONE})
    located = await find(source, **options)
    assert [file.name for file in located.files] == [A, B]
    if not source.startswith("http"):
        assert [text for text in located.warnings if SINGLE in text and INDEX in text]


async def test_no_single_file_no_warning(place: Place) -> None:
    """Without one there is nothing to warn of."""
    source, options = place(FILES)
    assert not [text for text in (await find(source, **options)).warnings if "prefer" in text]


@pytest.mark.parametrize(
    "fault", [Status(500), Status(403), Status(429, {"retry-after": "86400"}), Stall(0), Status(418)]
)
async def test_looking_for_a_single_file_cannot_fail(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    """Whether to warn is a small matter: whatever the answer to that question is, the checkpoint was found."""
    server.hub("org/model", FILES)
    for revision in ("main", COMMIT):
        server.fault(f"/org/model/resolve/{revision}/{SINGLE}", fault, forever=True)
    policy = replace(FAST, connect_timeout=0.3, read_timeout=5)
    began = time.monotonic()
    located = await find("org/model", endpoint=server.url, cache=tmp_path, policy=policy)
    assert time.monotonic() - began < 2
    assert (located.warnings, SINGLE in located.absent) == ([], False)


@pytest.mark.parametrize("first", [1, 3, 4, 9])
async def test_the_first_candidate_that_is_there(place: Place, first: int) -> None:
    """Of the names that are known, the first that is there is taken, and those before it are known to be absent."""
    names = candidates(None)
    index = index_bytes({"x": "s.safetensors"})
    files = {name: index if name.endswith(".json") else ONE for name in names[first:]}
    source, options = place({**files, "s.safetensors": safetensors_bytes({"x": np.zeros(1)})})
    located = await find(source, **options)
    assert (located.index.file if located.index else located.files[0].name) == names[first]
    assert set(names[:first]) <= set(located.absent)


async def test_nothing_there(place: Place, server: FaultServer) -> None:
    """Where there is no checkpoint the error names every candidate, the index first."""
    source, options = place({"config.json": b"{}"})
    with pytest.raises(CheckpointNotFoundError) as caught:
        await find(source, **options)
    assert caught.value.candidates[:2] == (INDEX, SINGLE)
    assert len(caught.value.candidates) == 10
    if server.seen:  # the first two of them are asked for at once
        names = asked(server)[:10]
        assert set(names[:2]) == {INDEX, SINGLE}
        assert names[2:] == list(caught.value.candidates[2:])


@pytest.mark.parametrize(
    "spelling",
    ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json", "model.fp16.safetensors.index.json"],
)
async def test_three_spellings_of_a_variants_index(place: Place, spelling: str) -> None:
    """Each of them is found, and not the index without the variant."""
    halves = sharded_bytes({"x": np.zeros(2, np.float16)}, 1, stem="model.fp16")
    del halves["model.fp16.safetensors.index.json"]
    shard = next(iter(halves))
    source, options = place({**FILES, **halves, spelling: index_bytes({"x": shard})})
    located = await find(source, variant="fp16", **options)
    assert located.index is not None
    assert located.index.file == spelling
    assert [file.name for file in located.files] == [shard]


async def test_a_variant_without_an_index(place: Place) -> None:
    """The single file of the variant, not that of the plain model; and an error if there is none."""
    source, options = place({SINGLE: ONE, "model.fp16.safetensors": ONE})
    assert [file.name for file in (await find(source, variant="fp16", **options)).files] == ["model.fp16.safetensors"]
    with pytest.raises(CheckpointNotFoundError, match="bf16"):
        await find(source, variant="bf16", **options)


async def test_subfolders(place: Place) -> None:
    """`subfolder=` moves all names; the shards of an index count from its own folder."""
    source, options = place({SINGLE: ONE, **{f"a/b/{name}": content for name, content in FILES.items()}})
    located = await find(source, subfolder="a/b", **options)
    prefix = "" if source.startswith(("/", "http")) else "a/b/"
    assert [file.name for file in located.files] == [prefix + A, prefix + B]
    assert located.index is not None
    assert len(located.index.weight_map) == 4
    with pytest.raises(CheckpointNotFoundError, match=INDEX):
        await find(source, subfolder="a", **options)


async def test_a_single_file_in_a_subfolder(place: Place) -> None:
    """The tensors of a file that no index lists are known, wherever it lies."""
    source, options = place({f"a/{SINGLE}": ONE})
    located = await find(source, subfolder="a", **options)
    assert located.index is None
    assert located.selected is not None
    assert [located.path_of(shard) for shard in located.selected.shards] == [file.name for file in located.files]


async def test_shards_in_a_subfolder(place: Place) -> None:
    """The index may place shards below its own folder."""
    names = {A: f"weights/{A}", B: f"weights/deeper/{B}"}
    moved = {names[name]: content for name, content in FILES.items() if name in names}
    weight_map = {"layer.0.weight": names[A], "layer.1.weight": names[B]}
    source, options = place({**moved, INDEX: index_bytes(weight_map)})
    assert [file.name for file in (await find(source, **options)).files] == list(names.values())


# -- what was named itself -------------------------------------------------------------------------


async def test_an_index_named_by_its_url(server: FaultServer, tmp_path: Path) -> None:
    """The index that the URL names is read, of any name, and no other candidate is asked for."""
    url = server.web("/models", {**FILES, "other.safetensors.index.json": FILES[INDEX]})
    located = await find(f"{url}other.safetensors.index.json?key={SIGNATURE}", cache=tmp_path)
    assert located.index is not None
    assert located.index.file == "other.safetensors.index.json"
    assert sorted(asked(server)) == [A, B, "other.safetensors.index.json"]
    assert {seen.query for seen in server.seen} == {f"key={SIGNATURE}"}


async def test_a_shard_named_by_its_url(server: FaultServer, tmp_path: Path) -> None:
    """A URL of a .safetensors file is that file, whatever lies beside it."""
    url = server.web("/models", FILES)
    located = await find(url + A, cache=tmp_path)
    assert (located.index, [file.name for file in located.files]) == (None, [A])
    assert asked(server) == [A]
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        await find(url + "nothing.safetensors", cache=tmp_path)


@pytest.mark.parametrize(
    "page", ["", "/tree/main", f"/tree/{COMMIT}", f"/blob/main/{INDEX}", f"/resolve/{COMMIT}/{INDEX}"]
)
async def test_a_page_of_the_hub(server: FaultServer, tmp_path: Path, page: str) -> None:
    """A URL copied from the Hub's site is its repository at its revision."""
    server.hub("org/model", FILES)
    located = await find(f"{server.url}/org/model{page}", endpoint=server.url, cache=tmp_path)
    assert located.commit == COMMIT
    assert [file.name for file in located.files] == [A, B]
    assert located.ref == (None if COMMIT in page else "main")


async def test_a_shard_named_by_its_page(server: FaultServer, tmp_path: Path) -> None:
    """The page of one file of a repository is that file."""
    server.hub("org/model", {f"sub/{name}": content for name, content in FILES.items()})
    located = await find(f"{server.url}/org/model/blob/main/sub/{B}", endpoint=server.url, cache=tmp_path)
    assert [file.name for file in located.files] == [f"sub/{B}"]


async def test_a_local_index_or_file(tmp_path: Path) -> None:
    """The path of an index or of a file, also as a Path, is that and nothing beside it."""
    for name, content in {**FILES, SINGLE: ONE}.items():
        (tmp_path / name).write_bytes(content)
    assert [file.name for file in (await find(tmp_path / INDEX, cache=tmp_path / "cache")).files] == [A, B]
    assert [file.name for file in (await find(str(tmp_path / SINGLE), cache=tmp_path / "cache")).files] == [SINGLE]
    assert not (tmp_path / "cache").exists()


# -- refusals --------------------------------------------------------------------------------------


async def test_a_missing_shard_is_no_reason_to_fall_back(place: Place) -> None:
    """The error names shard and index, although a single file is there that would load."""
    source, options = place({INDEX: FILES[INDEX], A: FILES[A], SINGLE: ONE})
    with pytest.raises(ShardNotFoundError, match=B) as caught:
        await find(source, **options)
    assert (caught.value.file, caught.value.index) == (B, INDEX)


async def test_many_missing_shards_are_one_error(place: Place) -> None:
    """Of several failures one comes out, as itself."""
    source, options = place({INDEX: FILES[INDEX]})
    with pytest.raises(ShardNotFoundError):
        await find(source, **options)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(401), AccessError),
        (Status(403), AccessError),
        (Status(500), ServerError),
        (Status(503), ServerError),
        (Stall(0), StalledError),
        (Status(418), ProtocolError),
        (Truncate(10), AsyncfetchError),
    ],
)
async def test_only_absence_falls_back(
    server: FaultServer, tmp_path: Path, fault: Fault, error: type[AsyncfetchError]
) -> None:
    """An index that cannot be read is an error, also at a URL; the single file beside it is not asked for."""
    url = server.web("/models", {**FILES, SINGLE: ONE})
    server.fault(f"/models/{INDEX}", fault, forever=True)
    with pytest.raises(error):
        await find(url, cache=tmp_path)
    assert set(asked(server)) == {INDEX}


@pytest.mark.parametrize("status", [404, 410])
async def test_absence_falls_back(server: FaultServer, tmp_path: Path, status: int) -> None:
    """404 and 410 both say that there is no such file."""
    url = server.web("/models", {**FILES, SINGLE: ONE})
    server.fault(f"/models/{INDEX}", Status(status), forever=True)
    assert [file.name for file in (await find(url, cache=tmp_path)).files] == [SINGLE]


async def test_a_broken_index_is_no_reason_to_fall_back(place: Place) -> None:
    """An index that is no index is an error."""
    source, options = place({INDEX: b"{}", SINGLE: ONE})
    with pytest.raises(InvalidIndexError, match="weight_map"):
        await find(source, **options)


async def test_an_index_beyond_the_limit(place: Place) -> None:
    """A huge index is refused before it is parsed."""
    source, options = place({**FILES, INDEX: FILES[INDEX] + b" " * 5000})
    with pytest.raises(InvalidIndexError, match=r"more bytes than the 1,000 "):
        await find(source, policy=replace(FAST, max_index_bytes=1000), **options)


async def test_a_pointer_instead_of_a_shard(place: Place) -> None:
    """A clone without git-lfs has pointers where shards should be: the error says so and what to do."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1234\n" % (b"a" * 64)
    source, options = place({**FILES, B: pointer})
    with pytest.raises(InvalidHeaderError, match=r"(?i)git.lfs") as caught:
        await find(source, **options)
    assert caught.value.file == B
    assert "git lfs pull" in str(caught.value)


async def test_an_unknown_revision(server: FaultServer, tmp_path: Path) -> None:
    """A revision that is not there is not taken for a repository without a checkpoint."""
    server.hub("org/model", FILES)
    server.fault(f"/org/model/resolve/none/{INDEX}", Status(404, {"x-error-code": "RevisionNotFound"}), forever=True)
    with pytest.raises(RevisionNotFoundError, match="none"):
        await find("org/model@none", endpoint=server.url, cache=tmp_path)


# -- index and headers -----------------------------------------------------------------------------


async def test_a_listed_tensor_that_its_shard_lacks(place: Place, server: FaultServer, tmp_path: Path) -> None:
    """That is an error before any shard is downloaded, and the cache is as it was."""
    large = {name: np.zeros(100_000, np.float32) for name in TENSORS}
    files = sharded_bytes(large, 2)
    files[INDEX] = index_bytes({**dict.fromkeys(list(large)[::2], A), "layer.9.weight": B, "layer.8.weight": B})
    source, options = place(files)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "mine").write_bytes(b"1")
    before = listing(tmp_path)
    with pytest.raises(MissingTensorError, match=B) as caught:
        async with open_session(source, cache_dir=cache, endpoint=options.get("endpoint"), policy=FAST) as session:
            await session.fetch()
    assert (caught.value.index, caught.value.tensors) == (INDEX, ("layer.9.weight", "layer.8.weight"))
    assert listing(tmp_path) == before
    assert sum(seen.sent for seen in server.seen if seen.path.startswith("/storage")) <= 4 * PREFIX_LIMIT


async def test_a_tensor_that_the_index_does_not_list(place: Place) -> None:
    """It is skipped, and a warning names the shard, how many there are, and one of them; so is a whole shard."""
    source, options = place({**FILES, INDEX: index_bytes({"layer.0.weight": A})})
    located = await find(source, **options)
    notes = [text for text in located.warnings if "skipped" in text]
    assert len(notes) == 2
    assert all(part in notes[0] for part in (A, "1 tensor", "'layer.2.weight'", INDEX))
    assert all(part in notes[1] for part in (INDEX, "nothing of 1 shard", "model-00002-of-00002.safetensors"))


async def test_a_selection_is_no_reason_to_warn(place: Place) -> None:
    """What `select` leaves out is listed: no warning."""
    source, options = place(FILES)
    located = await find(source, select="layer.0.*", **options)
    assert [file.name for file in located.files] == [A]
    assert not [text for text in located.warnings if "skipped" in text]


@pytest.mark.parametrize("sharded", [True, False])
async def test_nothing_selected(place: Place, server: FaultServer, sharded: bool) -> None:
    """A selection without a tensor is an error before a shard is downloaded, with an index or without."""
    source, options = place(FILES if sharded else {SINGLE: ONE})
    with pytest.raises(SelectionError, match="none of the"):
        await find(source, select=["nothing.*", "else"], **options)
    if sharded:
        assert {name for name in asked(server) if name.endswith(".safetensors")} <= {SINGLE}


async def test_a_selection_that_can_be_read_once(place: Place) -> None:
    """A generator of globs is as good as a list."""
    source, options = place(FILES)
    located = await find(source, select=(f"layer.{n}.*" for n in (1, 3)), **options)
    assert located.selected is not None
    assert list(located.selected.weight_map) == ["layer.1.weight", "layer.3.weight"]


async def test_a_header_longer_than_the_first_look(place: Place, server: FaultServer) -> None:
    """The rest of a long header is one more range, and only the rest."""
    tensors = {f"layer.{n}.{'x' * 60}": np.zeros(1, np.uint8) for n in range(2000)}
    data = safetensors_bytes({**tensors, "big": np.zeros(300_000, np.uint8)})
    length = 8 + int.from_bytes(data[:8], "little")
    assert length > 2 * PREFIX_LIMIT
    source, options = place({SINGLE: data})
    located = await find(source, **options)
    header = located.files[0].header
    assert header is not None
    assert len(header.tensors) == 2001
    if server.seen:
        ranges = [seen.headers["range"] for seen in server.seen if seen.sent > 100]
        assert ranges[-2:] == [f"bytes=0-{PREFIX_LIMIT - 1}", f"bytes={PREFIX_LIMIT}-{length - 1}"]


# -- hashes ----------------------------------------------------------------------------------------


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_checksums_of_no_file(place: Place) -> None:
    """A hash for a file that is not part of the checkpoint is a mistake, and is said."""
    source, options = place(FILES)
    with pytest.raises(SourceError, match="model-00003"):
        await find(source, checksums={"model-00003-of-00002.safetensors": "0" * 64}, **options)
    located = await find(source, checksums={A: digest(FILES[A])}, **options)
    assert str(located.files[0].checksum) == digest(FILES[A])


async def test_checksum_without_a_name(place: Place) -> None:
    """It is for no file either, least of all where there is no index to be mistaken for."""
    source, options = place({"model.safetensors": ONE})
    with pytest.raises(SourceError, match="''"):
        await find(source, checksums={"": "0" * 64}, **options)


async def test_checksums_count_from_the_index(server: FaultServer, tmp_path: Path) -> None:
    """In a subfolder, both the path in the repository and the name in the index are known."""
    server.hub("org/model", {f"sub/{name}": content for name, content in FILES.items()})
    for name in (A, f"sub/{A}"):
        await find(
            "org/model", subfolder="sub", endpoint=server.url, cache=tmp_path, checksums={name: digest(FILES[A])}
        )


async def test_checksums_that_contradict_the_hub(server: FaultServer, tmp_path: Path) -> None:
    """Where the Hub names another hash, nothing is downloaded."""
    repository = server.hub("org/model", FILES)
    with pytest.raises(CorruptError, match=A):
        async with open_session(
            "org/model", endpoint=server.url, cache_dir=tmp_path, policy=FAST, checksums={A: "0" * 64}
        ) as session:
            await session.fetch()
    assert server.sent(repository.storage[A]) <= len(FILES[A])
    assert not listing(tmp_path)


@pytest.mark.parametrize("text", ["", "md5:" + "0" * 32, "sha256:xyz", "0" * 63, "sha1:" + "0" * 40])
async def test_checksums_that_are_none(tmp_path: Path, text: str) -> None:
    """What is no hash is refused before anything else happens."""
    with pytest.raises(SourceError, match="checksum"):
        await find("org/model", cache=tmp_path, checksums={A: text})


def repr_digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def test_a_digest_header(server: FaultServer, tmp_path: Path) -> None:
    """A server that sends Repr-Digest when asked (RFC 9530) needs no checksums=, and no warning is given."""
    url = server.web("/models", {A: FILES[A]}, repr_digest=f"sha-512=:AAAA:, {repr_digest(FILES[A])}")
    located = await find(url + A, cache=tmp_path)
    assert str(located.files[0].checksum) == digest(FILES[A])
    assert located.warnings == []
    assert server.seen[0].headers["want-repr-digest"] == "sha-256=10"
    with pytest.raises(CorruptError, match="checksums="):
        await find(url + A, cache=tmp_path, checksums={A: "0" * 64})


@pytest.mark.parametrize(
    "header", ["sha-256=:short:", "sha-512=:AAAA:", "sha-256=" + "A" * 44, "xsha-256=:" + "A" * 43 + "=:"]
)
async def test_a_digest_header_that_is_none(server: FaultServer, tmp_path: Path, header: str) -> None:
    """What is not a sha-256 is no hash; the caller is told that there is none."""
    url = server.web("/models", {A: FILES[A]}, repr_digest=header)
    located = await find(url + A, cache=tmp_path)
    assert located.files[0].checksum is None
    assert [text for text in located.warnings if A in text and "no checksum" in text]


# -- web servers -----------------------------------------------------------------------------------


async def test_the_state_of_a_url_has_a_name(server: FaultServer, tmp_path: Path) -> None:
    """The same validators give the same commit, another ETag another one, and a query changes nothing."""
    url = server.web("/models", FILES)
    first = (await find(url, cache=tmp_path)).commit
    assert (await find(url, cache=tmp_path)).commit == first
    assert (await find(url + "?sig=1", cache=tmp_path)).commit == first
    server.fault(f"/models/{B}", Headers(etag='"other"'), forever=True)
    assert (await find(url, cache=tmp_path)).commit not in (first, None)


@pytest.mark.parametrize("etag", ['"strong"', 'W/"weak"', "bare"])
async def test_only_a_strong_etag_is_a_validator(server: FaultServer, tmp_path: Path, etag: str) -> None:
    """Others are no promise that the bytes are the same (RFC 9110, 13.1.5): they go into no If-Range."""
    located = await find(server.web("/models", {SINGLE: ONE}, etag=etag), cache=tmp_path)
    target = located.files[0].target
    assert target is not None
    assert target.validator == (etag if etag == '"strong"' else None)


async def test_a_server_without_ranges(server: FaultServer, tmp_path: Path) -> None:
    """200 with the whole file is as good: no more of it is read than is needed."""
    data = safetensors_bytes({"x": np.zeros(2_000_000, np.float32)})
    url = server.web("/models", {SINGLE: data})
    server.fault(f"/models/{SINGLE}", IgnoreRange, forever=True)
    located = await find(url + SINGLE, cache=tmp_path)
    assert located.files[0].size == len(data)
    assert located.files[0].prefix == data[:PREFIX_LIMIT]


async def test_a_server_that_tells_no_size(server: FaultServer, tmp_path: Path) -> None:
    """A small file without a length is read whole, the header of a large one implies its size, however long it is."""
    files = {SINGLE: ONE, A: safetensors_bytes({"x": np.zeros(PREFIX_LIMIT, np.uint8)})}
    files[B] = safetensors_bytes({"x": np.zeros(PREFIX_LIMIT, np.uint8)}, {"filler": "x" * PREFIX_LIMIT})
    url = server.web("/models", files)
    for name in files:
        server.fault(f"/models/{name}", (IgnoreRange, Chunked), forever=True)
    for name in files:
        assert (await find(url + name, cache=tmp_path)).files[0].size == len(files[name])


async def test_an_empty_file(place: Place) -> None:
    """A file of no bytes is no safetensors file, however the server answers a range of it."""
    source, options = place({SINGLE: b""})
    with pytest.raises(InvalidHeaderError, match=SINGLE):
        await find(source, **options)


async def test_files_that_were_moved(server: FaultServer, tmp_path: Path) -> None:
    """A redirect to another origin is followed, without what identifies the caller."""
    server.web("/real", FILES)
    for name in FILES:
        target = f"{server.storage_url}/real/{name}"
        server.resources[f"/models/{name}"] = Resource(respond=lambda _seen, to=target: Answer(302, {"location": to}))
        server.resources[f"/real/{name}"].second = True
    located = await find(f"{server.url}/models/", cache=tmp_path)
    assert [file.size for file in located.files] == [len(FILES[A]), len(FILES[B])]


async def test_a_checkpoint_that_is_gone_from_the_web(server: FaultServer, tmp_path: Path) -> None:
    """Offline, the last state of a URL is loaded; another URL is not there."""
    url = server.web("/models", FILES)
    async with open_session(url, cache_dir=tmp_path, policy=FAST) as session:
        online, _, _ = await session.fetch()
    requests = len(server.seen)
    offline = await find(url, cache=tmp_path, offline=True)
    assert offline.commit == online.commit
    assert [file.path is not None for file in offline.files] == [True, True]
    with pytest.raises(OfflineError):
        await find(server.url + "/others/", cache=tmp_path, offline=True)
    with pytest.raises(OfflineError):
        await find(url + SINGLE, cache=tmp_path, offline=True)
    assert len(server.seen) == requests


# -- the cache of a repository ---------------------------------------------------------------------


async def download(server: FaultServer, cache: Path, **options: Any) -> Located:
    async with open_session("org/model", endpoint=server.url, cache_dir=cache, policy=FAST, **options) as session:
        located, _, _ = await session.fetch()
        return located


async def test_a_pinned_and_cached_checkpoint_needs_no_request(server: FaultServer, tmp_path: Path) -> None:
    """With the commit given and all files here, nothing is asked."""
    server.hub("org/model", FILES)
    await download(server, tmp_path)
    requests = len(server.seen)
    located = await find(f"org/model@{COMMIT}", endpoint=server.url, cache=tmp_path)
    assert [file.path is not None for file in located.files] == [True, True]
    assert len(server.seen) == requests


async def test_offline(server: FaultServer, tmp_path: Path) -> None:
    """Offline, branch and commit are found in the cache; another branch, and a missing shard, are OfflineError."""
    server.hub("org/model", FILES)
    with pytest.raises(OfflineError, match="main"):
        await find("org/model", endpoint=server.url, cache=tmp_path, offline=True)
    assert not server.seen
    located = await download(server, tmp_path)
    requests = len(server.seen)
    for revision in (None, COMMIT):
        found = await find("org/model", revision=revision, endpoint=server.url, cache=tmp_path, offline=True)
        assert found.commit == COMMIT
    with pytest.raises(OfflineError, match="dev"):
        await find("org/model@dev", endpoint=server.url, cache=tmp_path, offline=True)
    assert located.cache is not None
    (located.cache.snapshot(COMMIT) / B).unlink()
    with pytest.raises(OfflineError, match=B):
        await find("org/model", endpoint=server.url, cache=tmp_path, offline=True)
    assert len(server.seen) == requests


async def test_absence_is_remembered(server: FaultServer, tmp_path: Path) -> None:
    """Of a pinned commit without an index, the index is asked for once."""
    server.hub("org/model", {SINGLE: ONE})
    await download(server, tmp_path)
    requests = len(server.seen)
    located = await find("org/model", revision=COMMIT, endpoint=server.url, cache=tmp_path)
    assert [file.name for file in located.files] == [SINGLE]
    assert len(server.seen) == requests


async def test_absence_is_a_fact_of_one_commit(server: FaultServer, tmp_path: Path) -> None:
    """What the branch lacked before a push is not held against the commit that comes with a later answer."""
    server.hub("org/model", {**FILES, SINGLE: ONE})
    nothing = Status(404, {"x-error-code": "EntryNotFound"})
    server.fault(f"/org/model/resolve/main/{INDEX}", nothing)
    located = await download(server, tmp_path)
    assert ([file.name for file in located.files], located.absent) == ([SINGLE], [])
    located = await download(server, tmp_path, revision=COMMIT)
    assert [file.name for file in located.files] == [A, B]


@pytest.mark.parametrize("commit", ["f" * 40, "none"])
async def test_absence_of_another_commit(server: FaultServer, tmp_path: Path, commit: str) -> None:
    """Nor is what an answer says of another commit than the one that was asked for."""
    server.hub("org/model", {**FILES, SINGLE: ONE})
    nothing = Status(404, {"x-error-code": "EntryNotFound", "x-repo-commit": commit})
    server.fault(f"/org/model/resolve/{COMMIT}/{INDEX}", nothing)
    located = await download(server, tmp_path, revision=COMMIT)
    assert ([file.name for file in located.files], located.absent) == ([SINGLE], [])
    located = await download(server, tmp_path, revision=COMMIT)
    assert [file.name for file in located.files] == [A, B]


@pytest.mark.parametrize("headers", [{}, {"x-error-code": "EntryNotFound"}], ids=["bare", "code"])
async def test_absence_at_a_pinned_commit(server: FaultServer, tmp_path: Path, headers: dict[str, str]) -> None:
    """Of a commit that was asked for by its hash, a 404 is a fact, whatever a mirror leaves out of its answer."""
    server.hub("org/model", {SINGLE: ONE})
    server.fault(f"/org/model/resolve/{COMMIT}/{INDEX}", Status(404, headers), forever=True)
    assert (await download(server, tmp_path, revision=COMMIT)).absent == [INDEX]
    requests = len(server.seen)
    await download(server, tmp_path, revision=COMMIT)
    assert len(server.seen) == requests


async def test_a_damaged_index_in_the_cache(server: FaultServer, tmp_path: Path) -> None:
    """A cached index is small, so its hash is always checked: it is fetched again, and offline it is an error."""
    server.hub("org/model", FILES)
    located = await download(server, tmp_path)
    assert located.index_path is not None
    good = located.index_path.read_bytes()
    located.index_path.resolve().write_bytes(good.replace(b"layer.0", b"layer.7"))
    with pytest.raises(ChecksumMismatchError, match=INDEX):
        await find("org/model", endpoint=server.url, cache=tmp_path, offline=True)
    again = await download(server, tmp_path, revision=COMMIT)
    assert again.index is not None
    assert "layer.0.weight" in again.index.weight_map
    assert located.index_path.read_bytes() == good


async def test_another_commit_in_the_middle(server: FaultServer, tmp_path: Path) -> None:
    """A Hub that answers for another commit than the one that was asked for is not believed."""
    server.hub("org/model", FILES)
    server.fault(f"/org/model/resolve/{COMMIT}/{B}", Headers(x_repo_commit="f" * 40), forever=True)
    with pytest.raises(AsyncfetchError, match="commit"):
        await find("org/model", endpoint=server.url, cache=tmp_path)


async def test_a_refusal_cancels_the_other_looks(server: FaultServer, tmp_path: Path) -> None:
    """The first failure ends the search: it does not wait for answers that hang."""
    server.hub("org/model", FILES)
    server.fault(f"/org/model/resolve/{COMMIT}/{A}", Status(403), forever=True)
    server.fault(f"/org/model/resolve/{COMMIT}/{B}", Stall(0), forever=True)
    with anyio.fail_after(5), pytest.raises(AccessError):
        await find("org/model", endpoint=server.url, cache=tmp_path, policy=replace(FAST, read_timeout=20))


async def test_looks_are_bounded(server: FaultServer, tmp_path: Path) -> None:
    """At most `connections` shards are looked at together."""
    weight_map = {f"t{n}": f"s{n}.safetensors" for n in range(12)}
    files = {shard: safetensors_bytes({name: np.zeros(1)}) for name, shard in weight_map.items()}
    server.hub("org/model", {**files, INDEX: index_bytes(weight_map)})
    at_once, most = 0, 0

    def watch(seen: Seen, inner: Callable[[Seen], Answer]) -> Answer:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return inner(seen)

    for shard in files:
        page = server.resources[f"/org/model/resolve/{COMMIT}/{shard}"]
        inner = page.respond
        assert inner is not None
        page.respond = lambda seen, inner=inner: watch(seen, inner)
    await find("org/model", endpoint=server.url, cache=tmp_path, policy=replace(FAST, connections=3))
    assert 1 < most <= 3


async def test_public_errors_are_no_groups(server: FaultServer, tmp_path: Path) -> None:
    """Two failures at once are one exception, and the other one hangs on it as a note. No group is its context."""
    server.hub("org/model", {INDEX: FILES[INDEX]})
    with pytest.raises(ShardNotFoundError) as caught:
        await asyncfetch.inspect_async("org/model", endpoint=server.url, cache_dir=tmp_path, policy=FAST)
    assert not isinstance(caught.value, BaseExceptionGroup)
    behind: list[BaseException] = [caught.value]
    while behind[-1].__context__ is not None:
        behind.append(behind[-1].__context__)
    assert not [error for error in behind if isinstance(error, BaseExceptionGroup)]
