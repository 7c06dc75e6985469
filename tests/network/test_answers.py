"""Open lists: which statuses may pass by themselves, and which codings are compressions."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from asyncfetch.errors import ChangedError, ChecksumMismatchError, CorruptError, ProtocolError, ServerError
from asyncfetch.network.ranges import Target, open_span
from asyncfetch.network.reading import read_span
from asyncfetch.network.retry import may_pass
from asyncfetch.spans import Span

from ..kit.fault_server import QUICK, Answer, FaultServer, Headers, Status, transport_of
from ..kit.small_model import CALM, FILES, KINDS, ONE_FILE, SHARD, SINGLE, load, same

BODY = bytes(range(256)) * 40
PATH = "/files/x.bin"
PLAIN = ["aws-chunked", "AWS-Chunked", "identity", "", "identity, aws-chunked", "utf-8", "none", "binary", "x-unknown"]
COMPRESSED = ["gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd", "BR", "aws-chunked, gzip", "gzip,br"]


def test_which_statuses_may_pass() -> None:
    """Every 5xx but two, and of the others three."""
    assert {status for status in range(100, 1000) if may_pass(status)} == {
        *(408, 425, 429),
        *(set(range(500, 600)) - {501, 505}),
    }


@pytest.mark.anyio
@KINDS
async def test_statuses_of_those_who_stand_before(server: FaultServer, tmp_path: Path, kind: str, seed: int) -> None:
    """Cloudflare's and others' end no download: of the index, of metadata, of a link and in the middle of a file."""
    repository = server.hub("org/model", FILES)
    chance = random.Random(seed)
    statuses = [*range(520, 531), 509, 529, 561, 598, 599, chance.randrange(506, 600)]
    for path in [*repository.pages.values(), *repository.storage.values(), "/org/model/resolve/main/" + SHARD]:
        server.fault(path, *(Status(status) for status in chance.sample(statuses, 3)))
    assert same(await load(server, tmp_path, kind=kind))


@pytest.mark.anyio
@pytest.mark.parametrize("status", [501, 505])
async def test_what_will_never_do(server: FaultServer, status: int) -> None:
    """It is asked for once."""
    server.fault(PATH, Status(status), forever=True)
    async with transport_of("own") as transport:
        with pytest.raises(ProtocolError, match=f"unexpected status {status}"):
            await read_span(transport, Target(server.url + PATH), Span(0, 10), file="x", size=len(BODY))
    assert len(server.to(PATH)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("status", [507, 520, 530, 599])
async def test_the_last_word_is_the_status(server: FaultServer, status: int) -> None:
    """After the attempts it is named."""
    server.fault(PATH, Status(status), forever=True)
    async with transport_of("own", replace(QUICK, attempts=2)) as transport:
        with pytest.raises(ServerError, match=f"answered {status}") as caught:
            await transport.fetch(server.url + PATH, limit=10)
    assert caught.value.status == status
    assert len(server.to(PATH)) == 2


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("coding", PLAIN)
async def test_words_that_are_no_compression(server: FaultServer, kind: str, coding: str) -> None:
    """Plain bytes are plain, whatever a store remembers of how they were uploaded."""
    server.web("/files", {"x.bin": BODY}, content_encoding=coding)
    async with transport_of(kind) as transport:
        assert (await transport.fetch(server.url + PATH, limit=1 << 20)).body == BODY
        data = await read_span(transport, Target(server.url + PATH), Span(7, 3007), file="x", size=len(BODY))
        assert data == BODY[7:3007]


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("coding", COMPRESSED)
async def test_every_compression_is_refused(server: FaultServer, kind: str, coding: str) -> None:
    """Those of the registry, in any case and in any company."""
    server.web("/files", {"x.bin": BODY}, content_encoding=coding)
    async with transport_of(kind) as transport:
        with pytest.raises(ProtocolError, match="compressed"):
            await transport.fetch(server.url + PATH, limit=1 << 20)
        with pytest.raises(ProtocolError, match="compressed"):
            async with open_span(transport, Target(server.url + PATH), Span(0, 9), file="x", size=len(BODY)):
                pass


@pytest.mark.anyio
async def test_a_model_in_a_store_that_remembers_chunks(server: FaultServer, tmp_path: Path) -> None:
    """A folder and a repository whose storage says `aws-chunked` load as any other."""
    server.web("/model", ONE_FILE, content_encoding="aws-chunked")
    assert same(await load(server, tmp_path / "web", "/model/" + SINGLE))
    repository = server.hub("org/model", FILES)
    for path in repository.storage.values():
        server.resources[path].headers["content-encoding"] = "aws-chunked"
    assert same(await load(server, tmp_path / "hub"))


@pytest.mark.anyio
async def test_bytes_that_are_chunked_indeed(server: FaultServer, tmp_path: Path) -> None:
    """A store that hands out the frames too: by the hash or by the size it is an error, and never a tensor."""

    def framed(answer: Answer) -> Answer:
        frame = b"%x;chunk-signature=%s\r\n" % (len(answer.body), b"0" * 64)
        coded = Headers(content_encoding="aws-chunked")(answer)
        return replace(coded, body=(frame + answer.body)[: len(answer.body)])

    repository = server.hub("org/model", FILES)
    server.fault(repository.storage[SHARD], framed, forever=True)
    with pytest.raises((ChecksumMismatchError, ChangedError, CorruptError, ProtocolError)):
        await load(server, tmp_path, policy=replace(CALM, attempts=2))
