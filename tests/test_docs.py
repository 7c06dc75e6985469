"""The documents are true: what they show runs, and what they name is there."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import anyio
import numpy as np
import pytest
from cyclopts import CycloptsError

import asyncfetch
from asyncfetch.cli.commands import app
from asyncfetch.server import Server

from .kit.buckets import KEYS, moto, put, without_stores
from .kit.files import safetensors_bytes, sharded, sharded_bytes
from .kit.structure import ROOT, tables
from .kit.tiny_models import outputs, save_tiny
from .mutants.places import source_of

RUNNABLE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*RUNNABLE, ROOT / "CHANGELOG.md", ROOT / "tests/CATALOGUE.md", *sorted((ROOT / ".github").rglob("*.md"))]
FRAMEWORKS = (
    "fastapi",
    "flax",
    "jax",
    "mlx",
    "torch",
    "transformers",
)  # a snippet that imports what is missing is skipped
WEB_FOLDER = "https://example.org/weights/"  # stands for an address that is served here


# -- reading documents -------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What stands between two fences. `line` is its first line in the file."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"

    def compiled(self) -> CodeType:
        """A module, or the body of a coroutine where it awaits. Its lines are numbered as in the document."""
        return compile("\n" * (self.line - 1) + self.text, self.file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def awaits(self) -> bool:
        return bool(self.compiled().co_flags & inspect.CO_COROUTINE)

    def lacks(self) -> list[str]:
        """The frameworks that it imports and that are not here."""
        nodes = list(ast.walk(ast.parse(self.text)))
        names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        imported = {name.partition(".")[0] for name in names}
        return [name for name in FRAMEWORKS if name in imported and importlib.util.find_spec(name) is None]


def blocks_of(file: Path, language: str) -> Iterator[Block]:
    """The fenced blocks of a document that are in `language`, in lists too."""
    text = file.read_text(encoding="utf-8")
    for found in re.finditer(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        lines = [line.removeprefix(found[1]) for line in found[2].splitlines(keepends=True)]
        yield Block(file, text.count("\n", 0, found.start(2)) + 1, language, "".join(lines))


def prose_of(file: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# -- Python ------------------------------------------------------------------------------------

IN_A_CLUSTER = ROOT / "docs/guides/cluster.md"  # tests/cluster/test_guide.py runs what it shows


def snippets() -> Iterator[Block]:
    """What runs by itself; of a notebook all cells together."""
    for file in RUNNABLE:
        if file == IN_A_CLUSTER:
            continue
        blocks = list(blocks_of(file, "python"))
        if file.name == "notebook.md":
            blocks = [replace(blocks[0], text="\n".join(block.text for block in blocks))]
        yield from blocks


SNIPPETS = list(snippets())


def tensors() -> dict[str, np.ndarray]:
    """A little of what a language model has."""
    shapes = {f"model.layers.{n}.{name}.weight": (8, 8) for n in range(4) for name in ("query", "key")}
    shapes |= {"embed.weight": (1200, 8), "norm.weight": (8,), "norm.bias": (8,), "lm_head.weight": (1200, 8)}
    shapes["qkv.weight"] = (24, 8)
    return {name: np.full(shape, n, np.float32) for n, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the models of the documents are served: by a hub, and in the folder of another web server."""
    root = tmp_path_factory.mktemp("models")
    for name in ("org/model", "org/other"):
        sharded(root / name, tensors())
    (root / "org/model/text_encoder").mkdir()
    (root / "org/model/text_encoder/model.fp16.safetensors").write_bytes(safetensors_bytes(tensors()))
    (root / "org/model/config.json").write_text("{}")
    (root / "org/linear").mkdir()
    linear = {"weight": np.ones((4, 8), np.float32), "bias": np.zeros(4, np.float32)}
    (root / "org/linear/model.safetensors").write_bytes(safetensors_bytes(linear))
    with Server(root) as hub, Server(root) as web:
        yield {"hub": hub.url, WEB_FOLDER: f"{web.url}/org/model/resolve/main/"}


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bucket of the documents, for a snippet that names it."""
    if "s3://bucket/" not in request.getfixturevalue("snippet").text:
        yield
        return
    without_stores(monkeypatch, tmp_path)
    with moto() as port:
        put(port, "bucket", {f"models/tiny/{name}": content for name, content in sharded_bytes(tensors(), 2).items()})
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        yield


def prepared(
    snippet: Block, urls: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Any]]:
    """What `snippet` gives when it is evaluated, in a folder with a checkpoint and with the hub of the documents.

    And the names that it then has.
    """
    for framework in snippet.lacks():
        pytest.skip(f"{snippet} DID NOT RUN: {framework} is not installed")
    sharded(folder / "checkpoint", tensors())
    if "org/bert" in snippet.text:  # a folder of that name is what both libraries then read
        save_tiny(import_module("transformers"), import_module("torch"), "bert", folder / "org/bert")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_ENDPOINT", urls["hub"])
    names = {"anyio": anyio, "asyncfetch": asyncfetch, "np": np, "__name__": "snippet"}
    return eval(replace(snippet, text=snippet.text.replace(WEB_FOLDER, urls[WEB_FOLDER])).compiled(), names), names


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if not one.awaits()], ids=str)
@pytest.mark.usefixtures("bucket")
def test_blocking_snippets_run(
    snippet: Block, urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece of Python without an await runs, against a server of the models that it names."""
    prepared(snippet, urls, tmp_path, monkeypatch)


@pytest.mark.anyio
@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.awaits()], ids=str)
async def test_async_snippets_run(
    snippet: Block, urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece of Python that awaits runs, on each event loop."""
    await prepared(snippet, urls, tmp_path, monkeypatch)[0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_recipe_for_transformers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README writes gives the numbers of the library's own load."""
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    (recipe,) = (snippet for snippet in SNIPPETS if "model = asyncfetch.load_pretrained" in snippet.text)
    kind = save_tiny(transformers, torch, family, tmp_path / "org/bert")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"asyncfetch": asyncfetch}
    exec(recipe.compiled(), names)
    reference = kind.from_pretrained(tmp_path / "org/bert")
    assert torch.equal(outputs(torch, names["model"]), outputs(torch, reference))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("framework", ["jax", "flax", "mlx"])
def test_the_recipes_for_frameworks(
    framework: str, urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guide writes gives the checkpoint's numbers, in the arrays of the framework; JAX shares the memory."""
    marks = {"jax": "may_alias=True", "flax": "from flax import nnx", "mlx": "import mlx.core"}
    (recipe,) = (snippet for snippet in SNIPPETS if marks[framework] in snippet.text)
    _, names = prepared(recipe, urls, tmp_path, monkeypatch)
    if framework == "jax":
        assert names["arrays"].keys() == tensors().keys()
        assert all(np.array_equal(names["arrays"][name], array) for name, array in tensors().items())
        weight = names["params"]["model"]["layers"]["1"]["key"]["weight"]
        assert weight.unsafe_buffer_pointer() == names["state_dict"]["model.layers.1.key.weight"].ctypes.data
    else:
        model = names["model"]
        assert type(model.weight[...]).__module__.partition(".")[0] == {"flax": "jaxlib", "mlx": "mlx"}[framework]
        assert np.array_equal(np.asarray(model.weight[...]), np.ones((4, 8)))
        assert np.array_equal(np.asarray(model.bias[...]), np.zeros(4))


def test_there_are_snippets() -> None:
    """Both kinds are found: a fence that is read wrong would let all tests pass."""
    for name, awaiting, blocking in (("README.md", 1, 2), ("loading.md", 3, 3), ("torch.md", 0, 4)):
        kinds = [snippet.awaits() for snippet in SNIPPETS if snippet.file.name == name]
        assert kinds.count(True) >= awaiting
        assert kinds.count(False) >= blocking


# -- the console -------------------------------------------------------------------------------


def flaws_of_command(line: str) -> list[str]:
    """What is wrong with a line that a reader is to type, as sentences."""
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    match words:
        case ["asyncfetch", *arguments]:
            return _flaws_of_arguments(arguments)
        case ["pip", "install", *packages]:
            return [flaw for package in packages for flaw in _flaws_of_package(package)]
        case ["python", "-m", module, *arguments]:
            path = ROOT.joinpath(*module.split("."))
            return _flaws_of_script(path / "__main__.py" if path.is_dir() else path.with_suffix(".py"), arguments)
        case [script, *arguments] if script.startswith(("scripts/", ".ci/")):
            path = ROOT / script
            flaws = [] if os.access(path, os.X_OK) else [f"{script} cannot be run"]
            return flaws + _flaws_of_script(path, arguments)
        case ["git" | "cd", *_]:
            return []
    return [f"nobody knows {line!r}"]


def _flaws_of_arguments(arguments: list[str]) -> list[str]:
    try:
        app.parse_args(arguments, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        return [str(error)]
    return []


def _flaws_of_package(requirement: str) -> list[str]:
    name, _, extras = requirement.partition("[")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(filter(None, extras.rstrip("]").split(",")))
    unknown = sorted(wanted - project["optional-dependencies"].keys())
    return [f"there is no extra {extra}" for extra in unknown] + ([f"{name} is not ours"] * (name != "asyncfetch"))


def _flaws_of_script(path: Path, arguments: list[str]) -> list[str]:
    """A script tells in its own text which options it takes."""
    if not path.is_file():
        return [f"there is no {path.relative_to(ROOT)}"]
    text, options = path.read_text(encoding="utf-8"), [word for word in arguments if word.startswith("-")]
    return [f"{path.name} does not tell of {word}" for word in options if not re.search(rf"{word}\b", text)]


COMMANDS = [
    pytest.param(line.removeprefix("$ "), id=f"{block}+{number}")
    for file in DOCUMENTS
    for block in blocks_of(file, "console")
    for number, line in enumerate(block.text.splitlines())
    if line.startswith("$ ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    """Each line of a console names a command, a script or an extra that there is, with options that it takes."""
    assert flaws_of_command(line) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("asyncfetch lode org/model", "lode"),
        ("asyncfetch load org/model --outptu x", "--outptu"),
        ("asyncfetch load", "SOURCE"),
        ("pip install 'asyncfetch[cli,clowd]'", "no extra clowd"),
        ("pip install asyncfecth", "asyncfecth is not ours"),
        ("scripts/tset", "no scripts/tset"),
        ("scripts/venv.sh", "cannot be run"),
        ("SEED=7 scripts/torture --sede 7", "does not tell of --sede"),
        ("python -m tests.mutants --chekc", "does not tell of --chekc"),
        ("python -m tests.mutnats", "no tests/mutnats.py"),
        ("rm -rf /", "nobody knows"),
    ],
)
def test_wrong_commands_are_found(line: str, says: str) -> None:
    """What a reader could not type with success is told."""
    assert any(says in flaw for flaw in flaws_of_command(line)), flaws_of_command(line)


# -- what they name ----------------------------------------------------------------------------


def broken_links(text: str, folder: Path) -> list[str]:
    """The links of a text that lies in `folder` which lead to no file of the repository, or to no heading in it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        if re.match(r"(https?|mailto):", link):
            continue
        target = (folder / file).resolve() if file else None
        there = text if target is None else _text_of(target)
        if (there is None and not (target and target.is_dir())) or (heading and heading not in _headings(there or "")):
            broken.append(link)
    return broken


def _text_of(path: Path) -> str | None:
    """What is in a file, be it a picture; None if it is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _headings(text: str) -> set[str]:
    """The anchors of a document, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def unknown_places(text: str) -> list[str]:
    """What a text names as `wing/file.py` or `wing/file.py:definition` and the package does not have."""
    unknown = []
    for file, name in re.findall(r"`((?:\w+/)*\w+\.py)(?::([\w.]+))?`", text):
        path = next((root / file for root in (ROOT / "asyncfetch", ROOT) if (root / file).is_file()), None)
        if path is None or (name and name not in _names_in(path)):
            unknown.append(f"{file}:{name}".rstrip(":"))
    return unknown


def _names_in(path: Path) -> set[str]:
    """Functions, classes, methods, and what is assigned at the top of a file."""
    source = source_of(path)
    return {*source.definitions, *re.findall(r"^(\w+)\b.*? = ", source.text, re.MULTILINE)}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    """Each link of a document to a file or a heading of the repository."""
    assert broken_links(prose_of(file), file.parent) == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_places_are_there(file: Path) -> None:
    """Each file and each definition that a document names is in the package, or in the repository."""
    assert unknown_places(prose_of(file)) == []


def test_wrong_links_and_places_are_found() -> None:
    """A file, a heading and a definition that are not there are told; what is there is not."""
    good = "[a](README.md) [b](#one-two) [c](docs) [d](https://x.y/z) [e](README.md#develop)"
    assert broken_links(f"# One two\n{good} [f](gone.md) [g](#two) [h](README.md#no)", ROOT) == [
        "gone.md",
        "#two",
        "README.md#no",
    ]
    good = "`policy.py` `policy.py:Policy.from_env` `policy.py:__version__` `tests/test_docs.py`"
    assert unknown_places(f"{good} `policy.py:Polly` `api/gone.py` `gone.py:x`") == [
        "policy.py:Polly",
        "api/gone.py",
        "gone.py:x",
    ]


def test_the_wings_are_drawn_as_they_are() -> None:
    """The picture of the wings has the rows of the table that is checked."""
    pictures = [block.text for block in blocks_of(ROOT / "docs/architecture.md", "text")]
    rows = [[line.split("  ")[0].strip() for line in text.splitlines()] for text in pictures]
    assert tables(ROOT)[0] in rows
