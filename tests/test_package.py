"""The package as others see it: its public names, its weight, and the wheel."""

from __future__ import annotations

import email
import importlib
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch import errors
from asyncfetch.policy import __version__

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "asyncfetch").rglob("*.py"))
MODULES = [file.removesuffix(".py").replace("/", ".") for file in FILES if "/__" not in file]
# The face: each of these has a twin with _async after its name.
TWINS = sorted(name.removesuffix("_async") for name in asyncfetch.__all__ if name.endswith("_async"))
EXTRAS = ["cyclopts", "huggingface_hub", "rich", "starlette", "torch", "uvicorn"]
HEAVY = ["filelock", "httpcore", "httpx", "ml_dtypes", "numpy", "safetensors", "tenacity"]


def fresh(code: str) -> str:
    """What `code` prints in a fresh interpreter where any warning is an error."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_public_names_resolve() -> None:
    """Each name in `asyncfetch.__all__` exists, once, and `dir` shows it."""
    assert len(asyncfetch.__all__) == len(set(asyncfetch.__all__))
    for name in asyncfetch.__all__:
        assert getattr(asyncfetch, name) is not None, name
    assert set(asyncfetch.__all__) <= set(dir(asyncfetch))


def test_no_public_name_is_a_file_too() -> None:
    """A function with the name of a file would turn into that module as soon as something imports the file."""
    assert set(asyncfetch.__all__) & set(MODULES) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that the package does not have fails as in any module, also when names resolve lazily."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = asyncfetch.no_such_name


def test_star_import_gives_the_public_names() -> None:
    """`from asyncfetch import *` binds exactly `__all__`."""
    namespace: dict[str, object] = {}
    exec("from asyncfetch import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(asyncfetch.__all__)


def test_the_pinned_functions_are_public() -> None:
    """The async functions are there, each with its blocking twin."""
    assert {"download", "load", "load_into"} <= set(TWINS)
    assert set(TWINS) <= {*asyncfetch.__all__, "open"}


@pytest.mark.parametrize("name", TWINS)
def test_twins_take_the_same_parameters(name: str) -> None:
    """A blocking function and its async twin have the same parameters, kinds and defaults."""
    blocking = inspect.signature(getattr(asyncfetch, name)).parameters
    twin = inspect.signature(getattr(asyncfetch, f"{name}_async")).parameters

    def shape(parameters: object) -> list[tuple[object, ...]]:
        return [(p.name, p.kind, p.default) for p in parameters.values()]  # type: ignore[attr-defined]

    assert shape(blocking) == shape(twin)


def test_load_takes_the_pinned_options() -> None:
    """`load` takes the source by position and everything else by name, with the documented defaults."""
    source, *options = inspect.signature(asyncfetch.load).parameters.values()
    assert (source.name, source.kind) == ("source", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert {option.name: option.default for option in options} == {
        "revision": None,
        "subfolder": None,
        "variant": None,
        "select": None,
        "dtype": None,
        "framework": "numpy",
        "device": None,
        "rename": None,
        "storage": "disk",
        "cache_dir": None,
        "token": None,
        "endpoint": None,
        "offline": None,
        "checksums": None,
        "verify": "download",
        "dequantize": False,
        "policy": None,
        "client": None,
        "report": None,
        "progress": None,
        "timeout": None,
    }


def test_every_public_object_is_documented() -> None:
    """Each public function and class has a docstring of its own, and so have a class's public methods."""
    bare = []
    for name in asyncfetch.__all__:
        thing = getattr(asyncfetch, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        if not (thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__):
            bare.append(name)
        if inspect.isclass(thing) and thing.__module__.startswith("asyncfetch"):
            methods = [(key, value) for key, value in vars(thing).items() if not key.startswith("_")]
            bare += [f"{name}.{key}" for key, value in methods if inspect.isroutine(value) and not value.__doc__]
    assert bare == []


def test_every_error_has_the_one_root() -> None:
    """Each error of the tree is an AsyncfetchError, and is there after `import asyncfetch` alone."""
    classes = [item for item in vars(errors).values() if inspect.isclass(item) and item.__module__ == errors.__name__]
    assert len(classes) > 20
    assert [thing for thing in classes if not issubclass(thing, asyncfetch.AsyncfetchError)] == []
    code = "import asyncfetch; print(asyncfetch.errors.AsyncfetchError is asyncfetch.AsyncfetchError)"
    assert fresh(code) == "True"


@pytest.mark.parametrize("module", MODULES)
def test_module_all_resolves(module: str) -> None:
    """Each file names what it offers in `__all__`, and has it."""
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


def test_import_needs_no_extra() -> None:
    """All public names are there when none of the extras can be imported: a plain install is enough."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"  # None there makes the import fail
        "import asyncfetch; print(all(getattr(asyncfetch, name) for name in asyncfetch.__all__))"
    )
    assert fresh(code) == "True"


def test_the_server_is_there_when_it_is_used() -> None:
    """`asyncfetch.server` needs no import of its own, costs nothing before, and says what it lacks."""
    code = (
        "import sys, asyncfetch\n"
        "before = {'starlette', 'uvicorn'} & set(sys.modules)\n"
        "print('server' in dir(asyncfetch), before, asyncfetch.server.Server.__name__)"
    )
    assert fresh(code) == "True set() Server"
    lacking = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "import inspect, asyncfetch\n"
        "print('server' in dict(inspect.getmembers(asyncfetch)))\n"
        "try: asyncfetch.server.Server\n"
        "except AttributeError as error: print(error)"
    )
    there, said = fresh(lacking).splitlines()
    assert there == "False"
    assert "no server here" in said
    assert "pip install 'asyncfetch[serve]'" in said


def test_import_is_light() -> None:
    """`import asyncfetch` loads no library that takes a while: the first use of a name does."""
    assert fresh(f"import sys, asyncfetch; print(*(name for name in {HEAVY} if name in sys.modules))") == ""


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """The wheel has every module, what the page is made of, the marker for type checkers and the licence; no more."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    info = f"asyncfetch-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    page = {"asyncfetch/server/people/service_page.css", "asyncfetch/server/people/service_page.js"}
    manual = {f"asyncfetch-{__version__}.data/data/share/man/man1/asyncfetch.1"}
    expected = {*FILES, *page, *manual, "asyncfetch/py.typed"}
    assert {name for name in names if not name.startswith(f"{info}/")} == expected
    assert f"{info}/licenses/LICENSE" in names
    assert "asyncfetch = asyncfetch.cli.main:main" in entry_points
    # What serves only those who develop is in dependency groups, which are not published.
    extras = ["cli", "cloud", "diffusers", "otel", "plot", "ray", "serve", "torch", "transformers", "vllm"]
    assert metadata.get_all("Provides-Extra") == extras
    assert {line.partition(",")[0] for line in metadata.get_all("Project-URL", [])} >= {"Homepage", "Issues"}


def test_changelog_knows_the_version() -> None:
    """The newest entry of the changelog is the version that is built."""
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert headings[0].startswith(f"## [{__version__}]")
