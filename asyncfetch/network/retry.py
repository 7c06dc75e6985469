"""The one rule of what is sent again, how often and after which wait."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from ..errors import NetworkError, RateLimitedError
from ..events import Notifier, Retrying
from ..policy import Policy

__all__ = ["Budget", "is_transient", "may_pass", "retrying"]


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


class Budget:
    """The failures in a row of one piece of work; refilled by real progress only.

    Refilling on any byte would let a server that drips hold the caller for ever.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.failures = 0
        self._unit = 0

    def progress(self, nbytes: int) -> None:
        """`nbytes` more bytes have arrived."""
        self._unit += nbytes
        if self._unit >= self.policy.progress_unit:
            self._unit = 0
            self.failures = 0

    def wait(self, error: BaseException | None) -> float:
        """Seconds before the next attempt: what the server asks for, else full jitter."""
        asked = getattr(error, "retry_after", None)
        jitter = random.random()
        if asked is not None:
            return float(asked) + jitter
        doublings = min(max(self.failures - 1, 0), 64)  # more overflow, and reach max_backoff anyway
        return jitter * min(self.policy.backoff * 2.0**doublings, self.policy.max_backoff)

    def exhausted(self, error: BaseException | None) -> bool:
        """Whether to give up: too many failures, or a wait longer than the policy allows."""
        asked = getattr(error, "retry_after", None) or 0.0
        return self.failures >= self.allowed(error) or asked > self.policy.max_wait

    def allowed(self, error: BaseException | None) -> int:
        """How many failures in a row are allowed: twice as many where the rate is limited, a quota that comes back."""
        return self.policy.attempts * (2 if isinstance(error, RateLimitedError) else 1)


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
        budget.failures += 1  # here, since tenacity asks how long to wait before it asks whether to stop
        return budget.wait(error_of(state))

    def before_sleep(state: RetryCallState) -> None:
        error = error_of(state)
        if error is not None:
            attempts = budget.allowed(error)
            notify(Retrying.after(error, file, attempt=budget.failures, attempts=attempts, delay=state.upcoming_sleep))

    return AsyncRetrying(
        retry=retry_if_exception(is_transient),
        stop=lambda state: budget.exhausted(error_of(state)),
        wait=wait,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
