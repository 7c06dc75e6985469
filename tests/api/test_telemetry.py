"""Spans and metrics of OpenTelemetry, as its own SDK receives them from a process that loads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from asyncfetch import events

from ..kit.canaries import TOKEN
from ..kit.fault_server import LOOK, FaultServer, Status
from ..kit.files import sharded_bytes

REPO, SHARDS = "org/model", 3
# A process of its own: it has one provider for its whole life.
PROGRAM = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
import anyio, asyncfetch
where = dict(cache_dir="cache")
with trace.get_tracer("program").start_as_current_span("of the program"):
{work}
spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
found = [metric for resource in reader.get_metrics_data().resource_metrics for scope in resource.scope_metrics
         for metric in scope.metrics]
points = [[metric.name, dict(point.attributes), getattr(point, "value", None) or getattr(point, "count", None)]
          for metric in found for point in metric.data.data_points]
print(json.dumps([spans, points]))
"""


def traced(work: str, server: FaultServer, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The spans, and the values of metrics, of a program that does `work`."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=textwrap.indent(work, "    "))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    spans, points = json.loads(ran.stdout)
    return spans, points


def tree(spans: list[dict[str, Any]], parent: str | None = None) -> list[Any]:
    """The names of spans below `parent`, each with those below it, in the order in which they began."""
    children = sorted((one for one in spans if one["parent_id"] == parent), key=lambda one: one["start_time"])
    return [[one["name"], *tree(spans, one["context"]["span_id"])] for one in children]


@pytest.fixture
def shards(server: FaultServer) -> dict[str, str]:
    """The paths in storage of a model that is served."""
    tensors = {f"layer.{n}.weight": np.full((64, 50), n, np.float32) for n in range(SHARDS)}
    repository = server.hub(REPO, sharded_bytes(tensors, SHARDS))
    server.listing(repository)
    return dict(repository.storage)


FILE = ["asyncfetch.file"]
CALL = ["asyncfetch.resolve"]
LOAD = ["asyncfetch.load", CALL, ["asyncfetch.files", *[FILE] * SHARDS], ["asyncfetch.merge"]]
WORK = f"""
asyncfetch.load({REPO!r}, **where)
asyncfetch.load({REPO!r}, **where)
anyio.run(lambda: asyncfetch.load_async({REPO!r}, cache_dir="other"))
with asyncfetch.open({REPO!r}, cache_dir="third") as checkpoint:
    with trace.get_tracer("program").start_as_current_span("reading"):
        checkpoint.tensor("layer.0.weight")
dict(asyncfetch.stream({REPO!r}, cache_dir="third"))
asyncfetch.convert({REPO!r}, "converted", **where)
try:
    asyncfetch.inspect("org/none", **where)
except asyncfetch.NotFoundError:
    pass
"""


def test_each_call_is_a_span(server: FaultServer, shards: dict[str, str], tmp_path: Path) -> None:
    """Within that of the program, with a span for each step and each file that is fetched; what is counted adds up."""
    size = sum(len(server.resources[path].body) for path in shards.values())
    spans, points = traced(WORK, server, tmp_path)
    assert tree(spans) == [
        [
            "of the program",
            LOAD,
            ["asyncfetch.load", CALL, ["asyncfetch.merge"]],
            LOAD,
            ["asyncfetch.open", CALL],
            ["reading"],
            ["asyncfetch.stream", CALL, ["asyncfetch.files", *[FILE] * SHARDS]],
            ["asyncfetch.convert", CALL, ["asyncfetch.write"]],
            ["asyncfetch.inspect", CALL],
        ]
    ]
    calls = sorted((one for one in spans if one["name"].count(".") == 1), key=lambda one: one["start_time"])
    roots = [one for one in calls if one["name"].split(".")[1] not in ("resolve", "files", "file", "merge", "write")]
    (opened,), (read,) = ([one for one in spans if one["name"] == name] for name in ("asyncfetch.open", "reading"))
    assert opened["end_time"] < read["start_time"]
    told = roots[0]["attributes"]
    assert told["asyncfetch.source"] == REPO
    assert (told["asyncfetch.files"], told["asyncfetch.size"], told["asyncfetch.downloaded"]) == (SHARDS, size, size)
    assert (roots[-1]["status"]["status_code"], roots[-1]["attributes"]["error.type"]) == (
        "ERROR",
        "CheckpointNotFoundError",
    )
    assert {one["status"]["status_code"] for one in roots[:-1]} == {"UNSET"}
    values = {(name, labels["asyncfetch.operation"], labels.get("error.type")): value for name, labels, value in points}
    assert values["asyncfetch.downloaded", "load", None] == 2 * size
    assert values["asyncfetch.downloaded", "stream", None] == size
    assert values["asyncfetch.duration", "load", None] == 3
    assert values["asyncfetch.duration", "inspect", "CheckpointNotFoundError"] == 1


def test_what_goes_wrong_is_told_without_secrets(server: FaultServer, shards: dict[str, str], tmp_path: Path) -> None:
    """Retries are events of the span of their file, a failure is the state of the call; no signature is in either."""
    first, second, _ = shards.values()
    server.fault(first, Status(503))
    server.fault(second, LOOK, Status(403), forever=True)
    work = f"""
asyncfetch.load({REPO!r}, cache_dir="other")
try:
    asyncfetch.load({REPO!r}, policy=asyncfetch.Policy(attempts=3, backoff=0.01), **where)
except asyncfetch.AsyncfetchError:
    pass
"""
    spans, points = traced(work, server, tmp_path)
    retries = [
        (one["attributes"]["asyncfetch.file"], event["attributes"])
        for one in spans
        for event in one["events"]
        if event["name"] == "retry" and one["name"] == "asyncfetch.file"
    ]
    assert {next(iter(shards)), list(shards)[1]} <= {file for file, _ in retries}
    assert any("503" in attributes["asyncfetch.reason"] for _, attributes in retries)
    assert any(name == "asyncfetch.retries" and value >= len(retries) for name, _, value in points)
    _, root = sorted((one for one in spans if one["name"] == "asyncfetch.load"), key=lambda one: str(one["start_time"]))
    assert root["status"]["status_code"] == "ERROR"
    assert [event["name"] for event in root["events"]] == ["exception"]
    said = json.dumps(spans)
    assert TOKEN not in said
    assert "signature=" not in said.lower()


def test_a_program_without_it_does_not_import_it(tmp_path: Path) -> None:
    """Whoever does not use OpenTelemetry pays nothing for it, installed or not."""
    code = "import asyncfetch, sys; asyncfetch.load('m'); print(any('opentelemetry' in name for name in sys.modules))"
    files = sharded_bytes({"a": np.ones(3)}, 1)
    (tmp_path / "m").mkdir()
    for name, content in files.items():
        (tmp_path / "m" / name).write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "False"), ran.stderr


def test_each_event_is_documented() -> None:
    """The guide names every event, with all that it carries."""
    guide = (Path(__file__).parents[2] / "docs/guides/watching.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", guide, re.MULTILINE))
    for kind in get_args(events.Event):
        assert set(re.findall(r"`(\w+)`", rows[kind.__name__])) >= {field.name for field in fields(kind)}, kind
