"""In a notebook: a picture of a load below its cell, that stays as it ended, and tables instead of reprs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.events import FileProgress, FileStarted, FileState, Resolved
from asyncfetch.progress.notebook import MOST, panel
from asyncfetch.progress.state import ProgressState
from asyncfetch.server import Server

from ..kit.files import index_bytes, safetensors_bytes, sharded

SHARDS = 4
LISTED = {f"layer.{n}.weight": f"model-{n + 1:05}-of-{SHARDS:05}.safetensors" for n in range(SHARDS)}
CELLS = """
import asyncfetch, sys
from asyncfetch.server import Server
server = Server({models!r}).__enter__()
---
state_dict = asyncfetch.load("org/model", endpoint=server.url, cache_dir={cache!r} + "/a", progress=True)
state_dict
---
_ = await asyncfetch.load_async("org/model", endpoint=server.url, cache_dir={cache!r} + "/b", progress=True)
---
checkpoint = asyncfetch.open("org/model", endpoint=server.url, cache_dir={cache!r} + "/c")
checkpoint
---
asyncfetch.inspect("org/model", endpoint=server.url, cache_dir={cache!r} + "/c")
---
asyncfetch.load("org/none", endpoint=server.url, cache_dir={cache!r} + "/a", progress=True)
---
checkpoint.close(); server.__exit__()
"""


def test_an_executed_notebook(tmp_path: Path) -> None:
    """Calls that block and calls that are awaited show themselves; results are tables; an error is no long story."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    model = tmp_path / "models" / "org" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors.index.json").write_bytes(index_bytes(LISTED))
    for name, shard in LISTED.items():
        (model / shard).write_bytes(safetensors_bytes({name: np.ones((30, 20))}))
    code = CELLS.format(models=str(tmp_path / "models"), cache=str(tmp_path)).split("---\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in code])
    nbclient.NotebookClient(notebook, timeout=50, allow_errors=True, kernel_name="python3").execute()
    shown = [
        ["".join(output["data"].get("text/html", "")) for output in cell.outputs if "data" in output]
        for cell in notebook.cells
    ]
    for pictures in (shown[1], shown[2]):
        assert pictures[0].count("<progress ") == SHARDS + 1
        assert pictures[0].count(">verified<") == SHARDS
        assert "4 files, 19." in pictures[0]
    assert "layer.{0-3}.weight" in shown[1][1]
    assert len(shown[2]) == 1
    assert "layer.{0-3}.weight" in shown[3][0]
    assert "to download" in shown[4][0]
    error = next(output for output in notebook.cells[5].outputs if output.output_type == "error")
    assert error.ename == "RepositoryNotFoundError"
    assert len(error.traceback) <= 5


def test_the_guide_is_a_notebook(tmp_path: Path) -> None:
    """Its pieces run as cells, one after another, and show what it says."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    guide = (Path(__file__).parents[2] / "docs/guides/notebook.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    sharded(tmp_path / "models/org/model", {"embed.weight": np.ones((50, 4)), **dict.fromkeys(LISTED, np.ones((3, 5)))})
    with Server(tmp_path / "models") as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
        where = f"import os\nos.environ |= {environment!r}"
        cells = [nbformat.v4.new_code_cell(cell) for cell in (where, *code)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(notebook, timeout=50, kernel_name="python3").execute()
    shown = ["".join(map(str, cell.outputs)) for cell in notebook.cells[1:]]
    load, table, inspected, memory, opened, awaited, refused = shown
    assert load.count("<progress ") == 4
    for html in (table, inspected):
        assert "layer.{0-3}.weight" in html
    assert "load, in memory alone" in memory
    assert "(10, 4)" in opened
    assert awaited == ""
    assert "org/modle" in refused


def test_a_picture_is_bounded_and_harmless() -> None:
    """Of many files those that move, the others in one line; names are text, whatever is in them."""
    state = ProgressState()
    names = [f"<script>{n}\x07</script>" for n in range(3 * MOST)]
    state.apply(Resolved("org/m", None, None, tuple(FileState(name, 100, 0, None) for name in names)), 0.0)
    for name in names[:5]:
        state.apply(FileStarted(name, 100, 0), 0.0)
        state.apply(FileProgress(name, 37, 100), 1.0)
    html = panel(state, 1.0, ["warning: <b>"])
    assert html.count("<tr>") == 5 + 2
    assert 'value="37"' in html
    assert "5 active" in html
    assert "<script>" not in html
    assert "<b>warning" not in html
    assert "&lt;script&gt;0\\x07" in html
