"""What is sent again, how often and after which wait."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pytest

from asyncfetch.errors import (
    CertificateError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    SourceError,
    StalledError,
)
from asyncfetch.events import Event, Notifier, Retrying
from asyncfetch.network import retry as module
from asyncfetch.network.retry import BRIEF, Budget, Hurry, is_transient, retrying
from asyncfetch.policy import Policy

from ..kit.samples import ERRORS

T = TypeVar("T")
URL = "http://host/"
RESET = NetworkError("reset", url=URL)
NUMBERS = [field.name for field in dataclasses.fields(Policy)]
MAY_BE_ZERO = {"patience", "backoff", "max_backoff", "max_wait", "stall_bytes", "max_redirects", "lock_patience"}


def test_is_transient_over_the_whole_tree() -> None:
    """Only the network's errors are retried: of all classes exactly those, when they say so themselves."""
    of_servers = {"ServerError", "ProtocolError", "ProxyError", "LinkExpiredError", "RateLimitedError"}
    again = {"NetworkError", "StalledError", *of_servers}
    assert {cls.__name__ for cls, error in ERRORS.items() if is_transient(error)} == again
    assert not is_transient(ProtocolError("x", url=URL))
    assert not is_transient(CertificateError("x", url=URL))


@pytest.mark.parametrize("error", [OSError(104, "reset"), TimeoutError(), KeyboardInterrupt(), BaseException()])
def test_foreign_errors_are_not_transient(error: BaseException) -> None:
    """What did not pass the wall of transport.py is a bug or a cancellation: never retried."""
    assert not is_transient(error)


def test_only_real_progress_refills_the_budget() -> None:
    """A drip does not refill: only whole units of progress do, also when they come in small pieces."""
    budget = Budget(Policy(progress_unit=100))
    budget.failures = 4
    budget.progress(60)
    assert budget.failures == 4
    budget.progress(40)
    assert budget.failures == 0
    budget.failures = 1
    budget.progress(99)
    assert budget.failures == 1


def test_a_budget_is_exhausted_by_failures() -> None:
    """As many failures in a row as the policy allows; the rate limit, which ends by itself, gets twice as many."""
    budget = Budget(Policy(attempts=3))
    limited = RateLimitedError(URL, 1.0)
    verdicts = []
    for budget.failures in range(8):
        verdicts.append((budget.exhausted(RESET), budget.exhausted(limited)))
    assert verdicts == [(failures >= 3, failures >= 6) for failures in range(8)]


@pytest.mark.parametrize("kind", [ServerError, RateLimitedError])
def test_a_wait_beyond_the_policy_ends_it(kind: type) -> None:
    """Retry-After up to max_wait is waited for, never a second longer."""
    budget = Budget(Policy(max_wait=60))

    def asked(seconds: float) -> NetworkError | RateLimitedError:
        return (
            RateLimitedError(URL, seconds)
            if kind is RateLimitedError
            else ServerError(503, url=URL, retry_after=seconds)
        )

    assert not budget.exhausted(asked(60))
    assert budget.exhausted(asked(61))
    assert 60 <= budget.wait(asked(60)) <= 61


def test_backoff_is_full_jitter_under_a_doubling_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between 0 and backoff x 2^(failures-1), never above max_backoff, however many failures there were."""
    budget = Budget(Policy(backoff=0.5, max_backoff=3, attempts=10_000))
    ceilings = []
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    for budget.failures in (1, 2, 3, 4, 5, 5000):
        ceilings.append(budget.wait(RESET))
    assert ceilings == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    monkeypatch.setattr(module.random, "random", lambda: 0.0)
    assert budget.wait(RESET) == 0.0


class Naps:
    """A sleep that takes no time and remembers how long it was asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await anyio.lowlevel.checkpoint()


async def call(
    budget: Budget,
    work: Callable[[], Awaitable[T]],
    sleep: Callable[[float], Awaitable[None]] | None = None,
    notify: Notifier | None = None,
) -> T:
    """`work` in the loop, as the engine writes it."""
    async for attempt in retrying(budget, notify or Notifier(None), file="x", sleep=sleep or Naps()):
        with attempt:
            return await work()
    raise AssertionError


@pytest.mark.anyio
async def test_retrying_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are retried with growing waits, each told with its delay; then the result comes out."""
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    naps, failures = Naps(), [RESET, ServerError(500, url=URL), RateLimitedError(URL, 7.0)]
    told: list[Event] = []
    budget = Budget(Policy(backoff=0.5))

    async def work() -> str:
        await anyio.lowlevel.checkpoint()
        if failures:
            raise failures.pop(0)
        return "done"

    reasons = [failure.message for failure in failures]
    assert await call(budget, work, naps, Notifier(told.append)) == "done"
    assert naps.seconds == [0.5, 1.0, 8.0]
    attempts = budget.policy.attempts
    allowed = [attempts, attempts, 2 * attempts]
    assert told == [Retrying("x", reasons[at], at + 1, allowed[at], delay) for at, delay in enumerate([0.5, 1.0, 8.0])]


@pytest.mark.anyio
async def test_retrying_gives_up_with_the_error_itself() -> None:
    """After `attempts` failures the last error comes out, not an error of the retry library."""
    naps, calls = Naps(), []

    async def work() -> None:
        calls.append(NetworkError(f"failure {len(calls) + 1}", url=URL))
        raise calls[-1]

    with pytest.raises(NetworkError, match="failure 3") as caught:
        await call(Budget(Policy(attempts=3)), work, naps)
    assert caught.value is calls[-1]
    assert (len(calls), len(naps.seconds)) == (3, 2)


@pytest.mark.anyio
async def test_progress_keeps_it_going() -> None:
    """A link that breaks often but moves a unit of bytes each time is never given up; one that drips is."""
    budget, calls = Budget(Policy(attempts=2, progress_unit=10)), 0

    async def work(nbytes: int) -> None:
        nonlocal calls
        calls += 1
        budget.progress(nbytes)
        if calls < 20:
            raise RESET

    await call(budget, lambda: work(10))
    assert calls == 20
    calls = 0
    with pytest.raises(NetworkError):
        await call(budget, lambda: work(1))
    assert calls == 2


@pytest.mark.anyio
@pytest.mark.parametrize("error", [CertificateError("x", url=URL), OSError("disk"), SourceError("x")])
async def test_other_errors_come_out_at_once(error: Exception) -> None:
    """What is not transient is raised as it is, after one attempt and no wait."""
    naps, calls = Naps(), 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)) as caught:
        await call(Budget(Policy()), work, naps)
    assert caught.value is error
    assert (calls, naps.seconds) == (1, [])


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["work", "sleep"])
async def test_cancellation_is_not_retried(where: str) -> None:
    """A cancelled attempt, or a cancelled wait, ends the loop at once; nothing runs after it."""
    calls = 0
    started = anyio.Event()

    async def loop() -> None:
        nonlocal calls
        async for attempt in retrying(
            Budget(Policy(backoff=30, max_backoff=30)), Notifier(None), sleep=lambda _s: anyio.sleep(30)
        ):
            with attempt:
                calls += 1
                started.set()
                if where == "sleep":
                    raise RESET
                await anyio.sleep(30)
        raise AssertionError("the loop went on")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            await started.wait()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert group.cancel_scope.cancelled_caught
    assert calls == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_is_cancelled_once_ends(anyio_backend: str) -> None:
    """asyncio's own cancellation strikes once, unlike anyio's: swallowed by a retry, it would be lost."""
    calls = 0

    async def loop() -> None:
        nonlocal calls
        async for attempt in retrying(Budget(Policy(backoff=0)), Notifier(None)):
            with attempt:
                calls += 1
                await asyncio.sleep(0.5)

    task = asyncio.ensure_future(loop())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert (task.cancelled(), calls) == (True, 1)


@pytest.mark.anyio
async def test_a_timeout_around_a_retry_is_obeyed() -> None:
    """A caller's deadline cuts the loop and is seen as that deadline, not as a network error."""

    async def limited() -> None:
        with anyio.fail_after(0.05):
            await call(Budget(Policy()), lambda: anyio.sleep(30))

    with pytest.raises(TimeoutError):
        await limited()


class Clock:
    """Seconds that pass when they are slept."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


AWAY = [RESET, ServerError(503, url=URL), StalledError("silent", url=URL)]
NO_DESCRIPTOR = NetworkError("too many open files", url=URL)
NO_DESCRIPTOR.__cause__ = OSError(errno.EMFILE, "Too many open files")
BROKEN = [
    NO_DESCRIPTOR,
    ProtocolError("a wrong range", url=URL, transient=True),
    LinkExpiredError(403, url=URL),
    RateLimitedError(URL, 0),
]


async def lasted(error: Exception, policy: Policy, **options: Any) -> tuple[int, float, list[Event]]:
    """How many attempts, and how many seconds, until `error` ended it; and what was told."""
    clock, attempts = Clock(), 0
    told: list[Event] = []

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        clock.now += 0.01
        raise error

    with pytest.raises(type(error)) as caught:
        await call(Budget(policy, clock=clock, **options), work, clock.sleep, Notifier(told.append))
    assert caught.value is error
    return attempts, clock.now - 100, told


@pytest.mark.anyio
@pytest.mark.parametrize("patience", [7.0, 300.0, 3600.0])
@pytest.mark.parametrize("error", AWAY, ids=lambda error: error.code)
async def test_patience_is_time(error: Exception, patience: float) -> None:
    """A server that answered before and is away is tried for so long, however fast the attempts fail; never longer
    than one wait beyond it. Each wait tells how long it will go on."""
    policy = Policy(patience=patience, attempts=2, backoff=0.5, max_backoff=2.0)
    attempts, seconds, told = await lasted(error, policy, met=lambda _url: True)
    assert attempts > 3
    assert patience <= seconds <= patience + 2.1
    left = [event.patience or 0.0 for event in told if isinstance(event, Retrying)]
    assert left[0] == patience
    assert left == sorted(left, reverse=True)


@pytest.mark.anyio
@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize("error", [*AWAY, *BROKEN], ids=lambda error: error.code)
async def test_attempts_where_patience_does_not_hold(error: Exception, met: bool) -> None:
    """A server that was never reached, one that breaks the rules, and one that limits the rate: so many attempts."""
    policy = Policy(attempts=3, patience=0 if met and error in AWAY else 300)
    attempts, _, told = await lasted(error, policy, met=lambda _url: met)
    assert attempts == (6 if isinstance(error, RateLimitedError) else 3)
    assert all(event.patience is None for event in told if isinstance(event, Retrying))


@pytest.mark.anyio
async def test_attempts_come_first() -> None:
    """A short patience takes no attempt away."""
    attempts, _, _ = await lasted(RESET, Policy(attempts=4, patience=0.001), met=lambda _url: True)
    assert attempts == 4


def test_progress_refills_patience() -> None:
    """What counts is the time since the first failure without progress, not since the work began."""
    clock = Clock()
    budget = Budget(Policy(attempts=1, patience=60), met=lambda _url: True, clock=clock)
    clock.now += 1000  # all went well
    for _ in range(5):
        budget.fail()
        assert not budget.exhausted(RESET)
        clock.now += 59
        budget.progress(budget.policy.progress_unit)
    budget.fail()
    clock.now += 61
    assert budget.exhausted(RESET)


def unknown_name(number: int) -> NetworkError:
    """As it comes through the libraries."""
    error = NetworkError("ConnectError", url=URL)
    error.__cause__ = OSError("all attempts failed")
    error.__cause__.__cause__ = socket.gaierror(number, "the resolver's words")
    return error


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("number", "met", "expected"),
    [(socket.EAI_NONAME, False, 1), (socket.EAI_AGAIN, False, 3), (socket.EAI_NONAME, True, 4)],
    ids=["mistyped", "no resolver", "known before"],
)
async def test_a_name_that_does_not_exist(number: int, met: bool, expected: int) -> None:
    """A name that never was reached and is not there ends it at once; a resolver that cannot be asked does not."""
    attempts, _, _ = await lasted(unknown_name(number), Policy(attempts=3, patience=10), met=lambda _url: met)
    assert attempts >= expected if met else attempts == expected


@pytest.mark.anyio
@pytest.mark.parametrize("error", [RESET, StalledError("silent", url=URL), unknown_name(socket.EAI_AGAIN)])
async def test_a_hurry_waits_for_nobody(error: Exception) -> None:
    """Who has something else to do gives up at the first failure of a server that does not answer."""
    assert (await lasted(error, Policy(), met=lambda _url: True, hurry=Hurry()))[0] == 1
    assert (await lasted(error, Policy(attempts=3, patience=0), hurry=Hurry(over=True)))[0] == 3


@pytest.mark.anyio
@pytest.mark.parametrize("asked", [0.0, 2.0, 4.0, 90.0])
@pytest.mark.parametrize("kind", [ServerError, RateLimitedError])
async def test_a_hurry_waits_briefly_for_who_asks_to(kind: type, asked: float) -> None:
    """A 429 or a 5xx is tried again within a few seconds, and given up where the server asks for more."""
    error = RateLimitedError(URL, asked) if kind is RateLimitedError else ServerError(503, url=URL, retry_after=asked)
    attempts, seconds, _ = await lasted(error, Policy(attempts=100), met=lambda _url: True, hurry=Hurry())
    assert (attempts == 1) == (asked > BRIEF)
    assert seconds <= 2 * BRIEF + 1
