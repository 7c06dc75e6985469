"""How long an answer of the source is good, and who may have one that was kept. Pure, without I/O.

What is asked of a commit never changes. What a branch is may change at any time, so such an answer is good for
BRANCH seconds, also one that says that something is not there. After that it is asked for again, and counts on only
where the source does not answer (stale-if-error, RFC 5861, section 4).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

__all__ = ["PATIENCE", "Access", "Answer", "Health", "is_fresh"]

BRANCH = 30.0  # seconds
DECISION = 60.0  # seconds for which the source's word on who may see what counts
PATIENCE = 8.0  # seconds that a client waits for an answer; huggingface_hub gives up after 10
LAPSED = 86400.0  # seconds for which that word counts while the source cannot be asked
REACHED = 30.0  # seconds for which an answer shows that it is there
AWAY = 10.0  # seconds for which a source that did not answer is not waited for where an answer is kept
_MOST = 10_000  # decisions
_SCOPES = ("told", "files")


class Answer(NamedTuple):
    """What the source answered, without what is not for clients.

    `at` is when, in seconds since 1970. `fixed`: it is about a commit. `open`: nobody had to say who he is.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    at: float
    fixed: bool
    open: bool


def is_fresh(answer: Answer, now: float) -> bool:
    """Whether an answer is good without a question, at `now` in seconds since 1970."""
    return answer.fixed or 0 <= now - answer.at < BRANCH


class Access:
    """What the source said about who may see which repository, for a short time, in memory alone.

    Who asks is known by the SHA-256 of its token. Who may have the files (scope "files") may have what is told of
    them ("told"), and not the other way round: of a gated repository everybody may read the listing. Times are those
    of a monotonic clock.
    """

    def __init__(self) -> None:
        self._decisions: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def grant(self, who: str, repository: str, scope: str, now: float) -> None:
        for one in _SCOPES[: _SCOPES.index(scope) + 1]:
            self._decisions[who, repository, one] = now
            self._decisions.move_to_end((who, repository, one))
        while len(self._decisions) > _MOST:
            self._decisions.popitem(last=False)

    def revoke(self, who: str, repository: str, scope: str) -> None:
        """It was refused; so is what only those may see who may see that."""
        for one in _SCOPES[_SCOPES.index(scope) :]:
            self._decisions.pop((who, repository, one), None)

    def may(self, who: str, repository: str, scope: str, now: float) -> bool:
        """Whether the source said so within DECISION seconds."""
        at = self._decisions.get((who, repository, scope))
        return at is not None and now - at < DECISION

    def could(self, who: str, repository: str, scope: str, now: float) -> bool:
        """Whether it said so the last time, within LAPSED seconds: that counts while it cannot be asked."""
        at = self._decisions.get((who, repository, scope))
        return at is not None and now - at < LAPSED


class Health:
    """Whether the source answers. Times are those of a monotonic clock."""

    def __init__(self) -> None:
        self._away_until = 0.0
        self._answered_at = -math.inf

    def failed(self, now: float) -> None:
        self._away_until = now + AWAY

    def answered(self, now: float) -> None:
        self._away_until, self._answered_at = 0.0, now

    def reached(self, now: float) -> bool:
        """Whether it answered within REACHED seconds."""
        return now - self._answered_at < REACHED

    def away(self, now: float) -> bool:
        return now < self._away_until
