"""Families of models by every way into them: the numbers of their library's own load, or an early refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.server import Server

from ..kit.tiny_models import FAMILIES, builders, outputs, save_tiny, save_unet

# What these libraries warn of is theirs; and to import them takes a while on a busy machine.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(240)]
# Families that transformers renames and merges from what is published: no module of theirs has the names of the files.
RENAMED = {"deepseek-v3", "gpt-neox", "mixtral", "qwen3-moe", "vit"}
# Families whose modules compute no buffers when they are made.
NO_BUFFERS = {"gpt2", "t5", "unet", "whisper"}


def difference(torch: Any, model: Any, reference: Any) -> float:
    """The largest one between what two models say; the expected value is exactly 0."""
    return float((outputs(torch, model) - reference).abs().max())


def saved(family: str, folder: Path) -> tuple[Any, Any]:
    """A random model of `family` in `folder`: torch, and the class."""
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    if family == "unet":
        return torch, save_unet(pytest.importorskip("diffusers"), torch, folder)
    return torch, save_tiny(transformers, torch, family, folder)


def streamed(kind: Any, folder: Path, server: Server, cache: Path) -> Any:
    """What a user makes of a stream with the library's own from_pretrained."""
    from transformers import AutoConfig

    from asyncfetch.models import to_torch

    source = f"org/{folder.name}"
    with asyncfetch.stream(source, endpoint=server.url, cache_dir=cache) as tensors:
        state = {name: to_torch(array) for name, array in tensors}
    return kind.from_pretrained(None, config=AutoConfig.from_pretrained(folder), state_dict=state)


def made(kind: Any, build: Any, folder: Path) -> Any:
    if hasattr(kind, "_from_config"):
        from transformers import AutoConfig

        return build(kind, AutoConfig.from_pretrained(folder))
    return build(_Configured(kind), kind.load_config(folder))


class _Configured:
    """A class of diffusers with the name that those of transformers have for what makes one from a config."""

    def __init__(self, kind: Any) -> None:
        self._from_config = kind.from_config


@pytest.mark.parametrize("family", [*FAMILIES, "unet"])
def test_every_way_is_right_or_refused(tmp_path: Path, family: str) -> None:
    """load_into with each way to make the module, load_pretrained with each storage, and a stream."""
    folder = tmp_path / "models" / "org" / family
    torch, kind = saved(family, folder)
    reference = outputs(torch, kind.from_pretrained(folder))
    found: dict[str, float | str] = {}
    with Server(tmp_path / "models") as server:
        where = {"endpoint": server.url}
        ways = [
            *((way, build, True) for way, build in builders(torch).items()),
            ("copied", builders(torch)["real"], False),
        ]
        for way, build, assign in ways:
            name, model = f"load_into, {way}", made(kind, build, folder)
            cache = tmp_path / name
            refused = None
            try:
                asyncfetch.load_into(model, f"org/{family}", cache_dir=cache, assign=assign, **where)
            except asyncfetch.ModelMismatchError as error:
                refused = error
            found[name] = "refused" if refused else difference(torch, model, reference)
            if refused:  # before any download
                assert not cache.exists()
                assert "asyncfetch.load_pretrained(source)" in refused.hint
        for storage in ("disk", "memory"):
            name = f"load_pretrained, {storage}"
            options: dict[str, Any] = {"cache_dir": tmp_path / name, "storage": storage, **where}
            if (family, storage) == ("unet", "memory"):
                with pytest.raises(asyncfetch.SourceError, match="from the disk"):
                    asyncfetch.load_pretrained(f"org/{family}", **options)
                continue
            model = asyncfetch.load_pretrained(f"org/{family}", **options)
            assert type(model) is kind
            assert not model.training
            found[name] = difference(torch, model, reference)
        if family != "unet":  # its library takes no state dict
            found["stream"] = difference(torch, streamed(kind, folder, server, tmp_path / "stream"), reference)
    print(f"\n{family}: {found}")
    assert {value for value in found.values() if value != "refused"} == {0.0}
    assert found["load_pretrained, disk"] == found.get("stream", 0.0) == 0.0
    right = {
        way.removeprefix("load_into, ") for way, value in found.items() if way.startswith("load_into") and value == 0
    }
    expected = {"real", "copied", "parameters_on_meta"} | ({"meta"} if family in NO_BUFFERS else set())
    assert right == (set() if family in RENAMED else expected)
