"""The one rule of what is sent again, how often, after which wait, and for how long.

What may pass by itself (`is_transient`) is tried again until it has used up both measures that hold for it:

- `Policy.attempts`, failures in a row. It alone holds for a server that answers and breaks the rules, for one
  that limits the rate (twice as many), and for one that never gave a good answer: its address may be
  mistyped. A name that does not exist ends it at once there.
- `Policy.patience`, seconds, where a server that gave a good answer before is away (`is_away`): refused, reset,
  not to be found, silent, or with a 5xx that passes. A line that is down comes back by itself, but not
  within a number of attempts, which fail the faster the more is broken.

Real progress refills both. Who has something else to do (`Hurry`) is not kept waiting at all.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from ..errors import LinkExpiredError, NetworkError, ProtocolError, RateLimitedError, ServerError
from ..events import Notifier, Retrying
from ..policy import Policy

__all__ = ["BRIEF", "Budget", "Hurry", "is_away", "is_transient", "may_pass", "retrying"]

BRIEF = 3.0  # seconds that even who is in a hurry waits for a server that asks to come again
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def may_pass(status: int) -> bool:
    """Whether what a status says may pass by itself, be it of a server or of a proxy that is asked to CONNECT.

    An open list, since those who stand before a server have statuses of their own (Cloudflare's 520 to 530,
    https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/). Of the 5xx
    only 501 and 505 say that the request itself will never do (RFC 9110, sections 15.6.2 and 15.6.6).
    """
    return status in (408, 425, 429) or (500 <= status < 600 and status not in (501, 505))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed when sent again. Decided by the error tree alone.

    Anything that is not the network's, cancellation above all, is never retried.
    """
    return isinstance(error, NetworkError | RateLimitedError) and error.transient


def is_away(error: BaseException | None) -> bool:
    """Whether the server cannot be reached, or cannot work for now: not one that answers and breaks the rules.

    Nor one that this process cannot ask, since it has too many files open.
    """
    if (
        not isinstance(error, NetworkError)
        or not error.transient
        or isinstance(error, ProtocolError | LinkExpiredError)
    ):
        return False
    return not any(isinstance(cause, OSError) and cause.errno in _NO_DESCRIPTOR for cause in _causes(error))


def _no_such_name(error: BaseException | None) -> bool:
    """Whether the name of a host is known not to exist. A resolver that cannot be asked says something else."""
    found = (cause for cause in _causes(error) if isinstance(cause, socket.gaierror))
    return next((cause.errno in _NO_SUCH_NAME for cause in found), False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


@dataclass(eq=False, slots=True)
class Hurry:
    """Of a caller that has something else to do if nobody answers. It is over with the first good answer.

    `brief`: for how many seconds it waits for a server that answers, and not well.
    """

    over: bool = False
    brief: float = BRIEF


class Budget:
    """The failures in a row of one piece of work; refilled by real progress only.

    Refilling on any byte would let a server that drips hold the caller for ever. `met` tells of a URL whether its
    origin gave a good answer before. `hurry` is that of the caller.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        met: Callable[[str], bool] = lambda _url: False,
        hurry: Hurry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.failures = 0
        self._since = 0.0  # when the first of them struck
        self._unit = 0
        self._met, self._hurry, self._clock = met, hurry, clock

    def progress(self, nbytes: int) -> None:
        """`nbytes` more bytes have arrived."""
        self._unit += nbytes
        if self._unit >= self.policy.progress_unit:
            self._unit = 0
            self.failures = 0

    def fail(self) -> None:
        """One more failure."""
        self.failures += 1
        if self.failures == 1:
            self._since = self._clock()

    def wait(self, error: BaseException | None) -> float:
        """Seconds before the next attempt: what the server asks for, else full jitter."""
        asked = getattr(error, "retry_after", None)
        jitter = random.random()
        if asked is not None:
            return float(asked) + jitter
        doublings = min(max(self.failures - 1, 0), 64)  # more overflow, and reach max_backoff anyway
        return jitter * min(self.policy.backoff * 2.0**doublings, self.policy.max_backoff)

    def exhausted(self, error: BaseException | None) -> bool:
        """Whether to give up, by the rule above, or since the server asks for a longer wait than the policy allows."""
        asked = getattr(error, "retry_after", None) or 0.0
        hopeless = _no_such_name(error) and not self._knows(error)
        if asked > self.policy.max_wait or hopeless or self._too_long(error, asked):
            return True
        return self.failures >= self.allowed(error) and not self.left(error)

    def allowed(self, error: BaseException | None) -> int:
        """How many failures in a row are allowed: twice as many where the rate is limited, a quota that comes back."""
        return self.policy.attempts * (2 if isinstance(error, RateLimitedError) else 1)

    def left(self, error: BaseException | None) -> float | None:
        """Seconds for which it will be tried without progress; None where only failures count."""
        if not (is_away(error) and self._knows(error) and self.policy.patience):
            return None
        return max(self._since + self.policy.patience - self._clock(), 0.0)

    def _knows(self, error: BaseException | None) -> bool:
        return self._met(getattr(error, "url", ""))

    def _too_long(self, error: BaseException | None, asked: float) -> bool:
        """Whether who is in a hurry waits no longer: not at all for one who does not answer."""
        if self._hurry is None or self._hurry.over:
            return False
        answered = isinstance(error, ServerError | RateLimitedError)
        return not answered or max(asked, self._clock() - self._since) > self._hurry.brief


def retrying(
    budget: Budget,
    notify: Notifier,
    *,
    file: str | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> AsyncRetrying:
    """A tenacity loop over `budget`: `async for attempt in retrying(...): with attempt: ...`.

    Each wait is told to `notify` as a Retrying of `file`. The error of the last attempt comes out as
    itself. `sleep` is passed on, since tenacity otherwise guesses the event loop.
    """

    def error_of(state: RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome else None

    def wait(state: RetryCallState) -> float:
        budget.fail()  # here, since tenacity asks how long to wait before it asks whether to stop
        return budget.wait(error_of(state))

    def before_sleep(state: RetryCallState) -> None:
        error = error_of(state)
        if error is not None:
            notify(
                Retrying.after(
                    error,
                    file,
                    attempt=budget.failures,
                    attempts=budget.allowed(error),
                    delay=state.upcoming_sleep,
                    patience=budget.left(error),
                )
            )

    return AsyncRetrying(
        retry=retry_if_exception(is_transient),
        stop=lambda state: budget.exhausted(error_of(state)),
        wait=wait,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
