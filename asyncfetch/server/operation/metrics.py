"""The counts in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/).

No label names a repository, a client or an address, so the number of series is fixed. Each server has a registry of
its own. What can be told of the process (memory, descriptors, CPU) is told too, where the system has /proc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from ...errors import SourceError
from ...policy import __version__

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise SourceError(
        f"Serving needs prometheus-client: {missing}.",
        hint="Run: pip install 'asyncfetch[serve]'",
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from ..counts import Counts

__all__ = ["Metrics"]


class _Family(NamedTuple):
    """Counters of one kind: `label` tells them apart, "" where there is one alone."""

    name: str
    help: str
    label: str
    members: Mapping[str, str]  # value of the label: counter


def _family(name: str, told: str, label: str, prefix: str, *values: str) -> _Family:
    return _Family(name, told, label, {value: f"{prefix}{value}" for value in values})


_KINDS = ("questions", "fills", "passed")
_COUNTERS = (
    _family("upstream_bytes", "Body bytes that came from the source.", "kind", "upstream_bytes_", *_KINDS),
    _family("upstream_requests", "Requests sent to the source.", "kind", "upstream_requests_", *_KINDS),
    _family("upstream_failures", "Questions that found the source away.", "", "upstream_failures", ""),
    _family("upstream_retries", "Requests to the source that were repeated.", "", "retries", ""),
    _family(
        "served_bytes", "Body bytes sent to clients, by where they were.", "origin", "served_bytes_",
        "cache", "fill", "passed", "own", "answer",
    ),
    _family("file_requests", "Requests for bytes of files of the source.", "result", "", "hits", "misses", "joined"),
    _family("passed_requests", "Those of which bytes came apart from the cache, and were not kept.", "", "passed", ""),
    _Family(
        "fills", "Files brought into the cache, or not.", "result",
        {"fetched": "filled", "failed": "fills_failed", "shared": "shared", "followed": "followed"},
    ),
    _family("wrong_hashes", "Files that came whole with a wrong hash.", "", "wrong_hashes", ""),
    _family("restarts", "Files fetched once more because of that.", "", "restarts", ""),
    _family("kept_answers", "Questions answered by what was kept.", "", "answers_kept", ""),
    _family("answers", "Answers to clients.", "status", "answers_", "1xx", "2xx", "3xx", "4xx", "5xx"),
)  # fmt: skip
_GAUGES = {
    "fills": "Files on their way.",
    "readers": "Clients that are sent a file.",
    "requests": "Requests that are not answered yet.",
}


class Metrics:
    """What `/metrics` answers about `counts`."""

    def __init__(self, counts: Counts) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Counted(counts))
        ProcessCollector(registry=self._registry)

    def response(self, accept: str) -> Response:
        """The metrics in the format that the client wants. Reads a few files in /proc."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"Content-Type": content_type, "Cache-Control": "no-store"})


class _Counted(Collector):
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        values = self._counts.snapshot()
        yield InfoMetricFamily("asyncfetch_build", "The version that runs.", value={"version": __version__})
        for name, told, label, members in _COUNTERS:
            family = CounterMetricFamily(f"asyncfetch_{name}", told, labels=[label] if label else [])
            for value, counter in members.items():
                family.add_metric([value] if label else [], values[counter])
            yield family
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(f"asyncfetch_{name}_running", told, value=values[f"running_{name}"])
