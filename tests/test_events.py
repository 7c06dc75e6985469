"""Events are values, and a reporter cannot break a load."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from typing import get_args

import pytest

from asyncfetch import events
from asyncfetch.events import Event, FileState, Notifier

from .kit.samples import EVENTS


def test_the_union_is_whole() -> None:
    """`Event` is every public dataclass that describes a moment, and no other; the samples have each once."""
    classes = {thing for name in events.__all__ if dataclasses.is_dataclass(thing := getattr(events, name))}
    assert set(get_args(Event)) == classes - {FileState} == {type(event) for event in EVENTS}
    assert len(EVENTS) == len(classes) - 1


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
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
    for event in EVENTS:
        notify(event)
    assert seen == list(EVENTS)


def test_a_failing_reporter_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """What a reporter raises is logged once with its traceback, and the load goes on without it."""
    calls: list[Event] = []

    def report(event: Event) -> None:
        calls.append(event)
        raise ValueError("broken bar")

    notify = Notifier(report)
    with caplog.at_level(logging.ERROR, logger="asyncfetch"):
        notify(EVENTS[0])
        notify(EVENTS[1])
    assert calls == [EVENTS[0]]
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
        Notifier(report)(EVENTS[0])


def test_no_reporter() -> None:
    """Without a reporter nothing happens."""
    Notifier(None)(EVENTS[0])
