"""Events are values, and a reporter cannot break a load."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from typing import get_args

import pytest

from asyncfetch import events
from asyncfetch.events import (
    Event,
    FileProgress,
    FileStarted,
    FileState,
    FileVerified,
    Finished,
    Notifier,
    Resolved,
    Retrying,
    Waiting,
    Warned,
)

STATE = FileState("a.safetensors", 10, 4, "sha256:00")
SAMPLES = [
    Resolved("org/name", "c" * 40, "index.json", (STATE,)),
    FileStarted("a.safetensors", 10, 4),
    FileProgress("a.safetensors", 6, 10),
    Retrying("a.safetensors", "reset", 1, 5, 0.5),
    Waiting("a.safetensors", "the server limits the request rate", 3.0),
    FileVerified("a.safetensors", 10, None),
    Warned("Look out."),
    Finished(1, 10, 6, 0.1),
]


def test_the_union_is_whole() -> None:
    """`Event` is every public dataclass that describes a moment, and no other."""
    classes = {thing for name in events.__all__ if dataclasses.is_dataclass(thing := getattr(events, name))}
    assert set(get_args(Event)) == classes - {FileState} == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_events_are_frozen_values(event: Event) -> None:
    """An event cannot be changed by one reporter under the eyes of the next, and it crosses processes."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, "other")
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(dataclasses.replace(event))


def test_the_notifier_passes_events_in_order() -> None:
    """Each event reaches the reporter once, as it is."""
    seen: list[Event] = []
    notify = Notifier(seen.append)
    for event in SAMPLES:
        notify(event)
    assert seen == SAMPLES


def test_a_failing_reporter_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """What a reporter raises is logged once with its traceback, and the load goes on without it."""
    calls: list[Event] = []

    def report(event: Event) -> None:
        calls.append(event)
        raise ValueError("broken bar")

    notify = Notifier(report)
    with caplog.at_level(logging.ERROR, logger="asyncfetch"):
        notify(SAMPLES[0])
        notify(SAMPLES[1])
    assert calls == SAMPLES[:1]
    (record,) = caplog.records
    assert record.name == "asyncfetch"
    assert record.exc_info is not None
    assert "broken bar" in str(record.exc_info[1])


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_reporter_is_not_swallowed(interrupt: type[BaseException]) -> None:
    """A reporter may be where Ctrl-C strikes: that goes on."""

    def report(_event: Event) -> None:
        raise interrupt

    with pytest.raises(interrupt):
        Notifier(report)(SAMPLES[0])


def test_no_reporter() -> None:
    """Without a reporter nothing happens."""
    Notifier(None)(SAMPLES[0])
