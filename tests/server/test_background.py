"""What a server does beside its answers, where it fails."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from asyncfetch.errors import ChangedError
from asyncfetch.server import Server
from asyncfetch.server.background import Background
from asyncfetch.server.folders.catalog import Catalog
from asyncfetch.server.source import store
from asyncfetch.server.source.freshness import Answer
from asyncfetch.server.source.store import Store

from ..kit.fault_server import FaultServer
from ..kit.small_model import ONE_LOOP
from .trees import write

if TYPE_CHECKING:
    from pathlib import Path

    from asyncfetch.server.folders.repository import Listed

ANSWER = Answer(200, {}, b"{}", 1e9, fixed=True, open=False)


@ONE_LOOP
@pytest.mark.anyio
async def test_a_task_that_fails_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def fail(name: str) -> None:
        raise ValueError(name)

    async def wait(event: anyio.Event) -> None:
        await event.wait()
        ended.append("well")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            tasks, event = Background(group), anyio.Event()
            tasks.start_soon(wait, event)
            tasks.start_soon(fail, "the first")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(fail, "the second")
            event.set()
    assert ended == ["well"]
    said = [record for record in caplog.records if record.name == "asyncfetch.server"]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["the first", "the second"]


def test_the_folder_of_the_answers_goes_away(tmp_path: Path) -> None:
    """While it is looked through, as a cleaner of disks may do."""

    def now() -> float:
        shutil.rmtree(tmp_path / "answers", ignore_errors=True)
        return 1e9

    for number in range(8):
        Store(tmp_path / "answers", lambda: 1e9).put(str(number), ANSWER)
        write(tmp_path / "answers" / f"{number:02x}" / "left.0123.asyncfetch.incomplete")
    Store(tmp_path / "answers", now).prune()
    assert not (tmp_path / "answers").exists()


def test_a_folder_of_answers_that_is_none(tmp_path: Path) -> None:
    """What cannot be written is kept in memory."""
    answers = Store(write(tmp_path / "answers"), lambda: 1e9)
    answers.put("question", ANSWER)
    answers.prune()
    assert answers.get("question") == ANSWER


def test_a_server_whose_books_are_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on, also where what it does now and then fails each time."""
    monkeypatch.setattr(store, "PRUNE", 0.01)
    with FaultServer() as source:
        source.hub("org/model", {"model.safetensors": b"weights", "config.json": b"{}"})
        with Server(tmp_path / "cache", upstream=source.url) as service:
            for book in (tmp_path / "cache" / ".locks" / "asyncfetch").iterdir():
                shutil.rmtree(book, ignore_errors=True)
                book.unlink(missing_ok=True)
                book.write_bytes(b"none any more")
            failed = 0

            def prune(_: Store) -> None:
                nonlocal failed
                failed += 1
                raise OSError

            monkeypatch.setattr(Store, "prune", prune)
            source.wait_for(lambda: failed > 2)
            for name, content in (("model.safetensors", b"weights"), ("config.json", b"{}")):
                answer = httpx.get(f"{service.url}/org/model/resolve/main/{name}")
                assert (answer.status_code, answer.content) == (200, content)


@ONE_LOOP
@pytest.mark.anyio
async def test_a_file_that_cannot_be_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: who asks for it is told, and the others are hashed all the same."""
    for name in "bad", "good":
        write(tmp_path / name / "config.json", name.encode())
    async with Catalog(tmp_path) as catalog:
        learn = catalog.hashes.learn

        def fail(listed: Listed, digest: str) -> None:
            if "bad" in listed.real:
                raise MemoryError
            learn(listed, digest)

        monkeypatch.setattr(catalog.hashes, "learn", fail)
        bad, good = (catalog.locate("models", name) for name in ("bad", "good"))
        assert bad is not None
        assert good is not None
        with pytest.raises(ChangedError, match="it cannot be hashed: MemoryError"):
            await catalog.repository(bad, "main")
        assert await catalog.repository(good, "main") is not None
