"""What other programs find at the nodes: huggingface_hub's own check of their caches, and transformers, offline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download

import asyncfetch
from asyncfetch.server import Server

from ..kit.minilm import make_minilm, minilm_root  # noqa: F401
from .conftest import CALM, Raylets

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("default"),  # what these libraries warn of is theirs
]

NAME = "demo/all-MiniLM-L6-v2-bf16"
SENTENCES = ["Each byte comes over the network once.", "A shard is a file of a checkpoint."]


@pytest.fixture
def root(minilm_root: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder to serve, with what sentence-transformers needs in a folder of its own beside the model."""
    root = tmp_path / "models"
    shutil.copytree(minilm_root / NAME, root / NAME, copy_function=os.link)
    shutil.copytree(make_minilm.source_folder() / "1_Pooling", root / NAME / "1_Pooling")
    return root


def embedded(transformers: Any, torch: Any, name: str | Path, pooling: Path, **where: Any) -> Any:
    """The sentences' embeddings as modules.json of the model says: the mean over the tokens, of length 1."""
    assert [mode for mode, on in json.loads(pooling.read_text()).items() if on is True][:1] == [
        "pooling_mode_mean_tokens"
    ]
    tokens = transformers.AutoTokenizer.from_pretrained(name, **where)(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(name, **where)
    with torch.no_grad():
        states, mask = model(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def test_unmodified_clients(raylets: Raylets, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node's cache passes `hf cache verify`, and gives the embeddings of a load without it."""
    torch = pytest.importorskip("torch", reason="NOT TESTED: a model from a node's cache. Install asyncfetch[torch]")
    transformers = pytest.importorskip("transformers")
    with Server(root) as server:
        found = asyncfetch.cluster.download(NAME, endpoint=server.url, policy=CALM)
        assert len(found.nodes) == len(raylets.alive())
        files = [path for path in (root / NAME).rglob("*") if path.is_file()]
        for node in found.nodes:
            verified = HfApi(endpoint=server.url).verify_repo_checksums(
                NAME, revision=found.commit, cache_dir=raylets.homes[node.node] / "hub"
            )
            assert (verified.checked_count, verified.mismatches) == (len(files), [])
            assert (verified.missing_paths, verified.extra_paths) == ([], [])
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # as the variable, which is read at the import
    direct = embedded(transformers, torch, root / NAME, root / NAME / "1_Pooling/config.json")
    assert bool(torch.isfinite(direct).all())
    for node in found.nodes:
        offline: Any = {"cache_dir": raylets.homes[node.node] / "hub", "local_files_only": True}
        pooling = Path(hf_hub_download(NAME, "1_Pooling/config.json", **offline))
        assert torch.equal(embedded(transformers, torch, NAME, pooling, **offline), direct)
