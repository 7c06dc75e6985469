"""For the whole suite: the event loops, an environment without the user's settings, seeds and figures."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import ssl
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis.strategies import none

from .kit import secrets_watch
from .kit.certificates import trusted_context
from .kit.fault_server import FaultServer

# A shell that starts the tests in the background makes them, and so the programs that they start and
# interrupt, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]

_LOOP = re.compile(rf"(?<=[\[-])({'|'.join(str(one.id) for one in BACKENDS)})(?=[\]-])")  # in the name of a test

FIGURE = "figure"  # what a test measured travels with its report, as the process that runs it may be another


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` is what scripts/torture runs; `--seed` repeats what a random test did; `--note` is for .ci/run.

    `--quick` is for who changes something; `--loops one` takes a third of the time: see `one_loop_each`.
    """
    parser.addoption("--quick", action="store_true", help="leave out what kills, tortures, or is marked heavy")
    parser.addoption("--long", action="store_true", help="run tests/torture in full (an hour or two)")
    parser.addoption("--loops", choices=["all", "one"], default="all", help="on which loops each async test runs")
    parser.addoption("--note", action="append", default=[], help="say this below the results: what is not tested")
    parser.addoption("--seed", type=int, help="of the random tests: 0 unless told, and a new one with --long")


def pytest_configure(config: pytest.Config) -> None:
    """The seed, the same for all processes of this run; the way to show a canary on purpose; which warnings may be."""
    if config.option.seed is None:
        drawn = random.randrange(10**9) if config.option.long else 0
        config.option.seed = getattr(config, "workerinput", {}).get("seed", drawn)
    # Plain web servers tell no checksums. Not in pyproject.toml, for which pytest would import asyncfetch too early.
    config.addinivalue_line("filterwarnings", "ignore::asyncfetch.AsyncfetchWarning")
    config.addinivalue_line("markers", "shows_secrets(reason): this test shows canaries itself, asyncfetch does not")
    config.addinivalue_line("markers", "heavy: takes seconds of processor time, so --quick leaves it out")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What `--quick` does not even import."""
    left_out = collection_path.name in ("torture", "test_mutants.py", "test_demo.py")
    return True if config.option.quick and left_out else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--quick` and `--loops one` do not run."""
    kept = set(items)
    if config.option.quick:
        kept = {item for item in kept if item.get_closest_marker("heavy") is None}
    if config.option.loops == "one":
        kept &= set(one_loop_each(items, config.option.seed))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is there before the first test stays: no collection of garbage need look at it, and tests ask for many."""
    given(none())(lambda _: None)()  # hypothesis looks by the same means for what it registers when it is first used
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker does not draw a seed of its own."""
    node.workerinput["seed"] = node.config.option.seed


@pytest.hookimpl(tryfirst=True)  # before a worker sends the report on
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Nobody reads what a test that passed has logged, and of thousands it is hundreds of megabytes."""
    if report.passed:
        report.sections = [(title, text) for title, text in report.sections if not title.startswith("Captured log")]


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[object]:
    """Every test is searched for canaries."""
    with secrets_watch.watching():
        return (yield)


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """A warning is said too."""
    secrets_watch.note("a warning", str(warning_message.message))


def pytest_report_header(config: pytest.Config) -> str:
    """Without the seed, a random failure could not be repeated."""
    return f"seed: {config.option.seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests measured, and what whoever started them has to say."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, text in report.user_properties
        if name == FIGURE
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
    for note in config.option.note:
        terminalreporter.section(note, sep="!", red=True)


def one_loop_each(items: list[pytest.Item], seed: int) -> set[pytest.Item]:
    """All items, but of those that differ by the loop alone one, drawn by name and seed: each loop is used."""
    same: dict[str, list[pytest.Item]] = {}
    for item in items:
        loops = "anyio_backend" in getattr(getattr(item, "callspec", None), "params", ())
        same.setdefault(_LOOP.sub("", item.nodeid, 1) if loops else item.nodeid, []).append(item)
    return {some[zlib.crc32(f"{seed} {name}".encode()) % len(some)] for name, some in same.items()}


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """The TLS context of a server that this process trusts."""
    return trusted_context(tmp_path_factory.mktemp("ca"), monkeypatch)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A fault server without files."""
    with FaultServer() as running:
        yield running


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; the same for each test."""
    return request.config.option.seed


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`scale(quick, whole)`: how often to do something, in the suite and in scripts/torture."""
    return lambda quick, whole: whole if request.config.option.long else quick


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`figure(text)` puts a line below the run's results."""
    return lambda text: request.node.user_properties.append((FIGURE, text))


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the cache may make symbolic links."""
    if request.param == "no links":
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    return request.param == "links"


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Each async test runs on asyncio, on asyncio with uvloop and on trio."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A certificate store of one authority, which nobody uses, for tests that name none.

    Each new `httpx.Client` reads the store, and that of a system takes it 20 ms.
    """
    store = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(store))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(store))
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No token, endpoint, proxy or cache of the user reaches a test."""
    for name in list(os.environ):
        upper = name.upper()
        if upper.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ASYNCFETCH_")) or upper.endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf-home")))


@pytest.fixture(autouse=True)
def no_secret_is_shown(request: pytest.FixtureRequest, clean_environment: None) -> Iterator[None]:
    """Neither what was said during a test nor what it leaves has a canary: see canaries.py."""
    folders = [Path(os.environ["HF_HOME"])]
    if "tmp_path" in request.fixturenames:
        folders.append(request.getfixturevalue("tmp_path"))
    yield
    secrets_watch.look_at_files(folders)
    secrets_watch.look_at_report(request.node)
    found = secrets_watch.hits()
    marker = request.node.get_closest_marker("shows_secrets")
    if marker is not None:
        assert marker.kwargs["reason"]
    elif found:
        pytest.fail("secrets were shown:\n" + "\n".join(found[:10]), pytrace=False)
