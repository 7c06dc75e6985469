"""The token of who loads for a cluster goes past Ray, as do passwords and signatures of the address that is loaded
from: no call, no log and no listing of Ray shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.cluster.keeper import Keeper

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown
from ..kit.fault_server import FaultServer
from ..kit.small_model import ONE_LOOP
from .conftest import CALM, Raylets
from .test_cluster import DIGESTS, FILES, KEPT, SHARDS, options, seen_there

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]


def watched(patch: pytest.MonkeyPatch, told: list[bytes]) -> None:
    """Note what the calls of actors and tasks that this process makes are made with."""
    ray = pytest.importorskip("ray")
    for kind in (ray.actor.ActorMethod, ray.actor.ActorClass, ray.remote_function.RemoteFunction):

        def noted(one: Any, args: Any = None, kwargs: Any = None, *, _real: Any = kind._remote, **more: Any) -> Any:
            told.append(ray.cloudpickle.dumps((args, kwargs, more.get("name"))))
            return _real(one, args, kwargs, **more)

        patch.setattr(kind, "_remote", noted)


class WatchedKeeper(Keeper):
    """A keeper that tells what it called others with: how often, and what of it shows a secret."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = list[bytes]()
        watched(pytest.MonkeyPatch(), self._calls)

    async def calls(self) -> tuple[int, list[str]]:
        return len(self._calls), [found for call in self._calls if (found := shown(call))]


def listed(ray: Any) -> str:
    """What Ray tells of its actors, jobs, workers and tasks."""
    state = ray._private.state
    return repr((state.actors(), state.jobs(), state.workers(), ray.timeline()))


def showing(folder: Path) -> list[Path]:
    """The files that show a secret, such as logs of Ray."""
    return [path for path in folder.rglob("*") if path.is_file() and shown(path.read_bytes())]


@ONE_LOOP
@pytest.mark.anyio
async def test_a_source_without_links(raylets: Raylets, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that only the token opens are read by the keeper alone: no node gets the token, and Ray does not."""
    ray, told = raylets.ray, list[bytes]()
    monkeypatch.setattr("asyncfetch.cluster.driving.Keeper", WatchedKeeper)
    watched(monkeypatch, told)
    repository = server.hub("org/closed", FILES, links="")
    server.listing(repository)
    held = await asyncfetch.cluster.load_async("org/closed", keep="both", **options(server))
    async with held:
        assert all(raylets.snapshots(node, "org/closed") == KEPT for node in raylets.alive())
        assert raylets.run(raylets.alive()[0], seen_there, held)["digests"] == DIGESTS
        assert shown(ray.cloudpickle.dumps(held._plan)) is None
        assert any(b"Errand" in call for call in told)
        assert not any(map(shown, told))
        made, found_in_calls = ray.get(held._keeper.calls.remote())
        assert made > len(FILES) * len(raylets.alive())
        assert found_in_calls == []
        assert "WatchedKeeper" in (found := listed(ray))
        assert shown(found) is None
    assert showing(Path(ray._private.worker._global_node.get_session_dir_path())) == []
    async with asyncfetch.cluster.load_async("org/closed", **options(server, token=False)) as held:
        assert held.downloaded == 0


@ONE_LOOP
@pytest.mark.anyio
async def test_an_address_with_a_password(
    raylets: Raylets, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads out of what is held where it came from, also not who knows its name."""
    ray, told = raylets.ray, list[bytes]()
    monkeypatch.setattr("asyncfetch.cluster.driving.Keeper", WatchedKeeper)
    watched(monkeypatch, told)
    file = server.web("/signed", {"model.safetensors": FILES[next(iter(SHARDS))]}) + "model.safetensors"
    url = file.replace("://", f"://me:{PASSWORD}@") + f"?X-Amz-Signature={SIGNATURE}"
    held = await asyncfetch.cluster.load_async(url, keep="both", hold="signed", nodes=2, policy=CALM, token=TOKEN)
    again = await asyncfetch.cluster.load_async(url, keep="both", hold="signed", nodes=2, policy=CALM, token=TOKEN)
    assert again.downloaded == 0
    assert any(b"Errand" in call for call in told)
    assert not any(map(shown, told))
    made, found_in_calls = ray.get(held._keeper.calls.remote())
    assert made
    assert found_in_calls == []
    assert shown(repr(ray.get(held._keeper.asked.remote()))) is None
    assert shown(listed(ray)) is None
    assert showing(Path(ray._private.worker._global_node.get_session_dir_path())) == []
    held.release()
