"""How long an answer of the source is good, and who may have one that was kept. Pure, without I/O.

What is asked of a commit never changes. What a branch is may change at any time, so such an answer is good for
BRANCH seconds, also one that says that something is not there. After that it is asked for again, and counts on only
where the source does not answer (stale-if-error, RFC 5861, section 4).
"""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPEN", "PATIENCE", "Access", "Answer", "Health", "is_fresh"]

BRANCH = 30.0  # seconds
DECISION = 60.0  # seconds for which the source's word on who may see what counts
PATIENCE = 8.0  # seconds that a client waits for an answer; huggingface_hub gives up after 10
LAPSED = 86400.0  # seconds for which that word counts while the source cannot be asked
REACHED = 30.0  # seconds for which an answer shows that it is there
KEPT_AGAIN = 3600.0  # seconds after which a decision that was renewed is written down again
AWAY = 10.0  # seconds for which a source that did not answer is not waited for where an answer is kept
OPEN = "open "
_MOST = 10_000  # decisions of each kind
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
    """What the source said about who may see which repository, for a short time.

    Who asks, for what, is known by a digest with the secret `key`, so that neither a token nor a repository can be
    read from what is kept on disk (grants.py); `known` is what was kept there. Who may have the files (scope "files")
    may have what is told of them ("told"), and not the other way round: of a gated repository everybody may read the
    listing. Who has no token is "": what everybody may see is known until the source says otherwise, by digests that
    begin with OPEN. Times are seconds since 1970.
    """

    def __init__(self, key: bytes, known: Mapping[str, float] | None = None) -> None:
        self._key = key
        self._decisions = OrderedDict[str, float]()
        self._opened = OrderedDict[str, float]()  # apart, so that many tokens do not close what is open
        for digest, at in (known or {}).items():
            self._book(digest)[digest] = at
        self._kept = dict(known or {})  # as they are on disk
        self._changes: dict[str, float | None] = {}

    def grant(self, who: str, repository: str, scope: str, now: float) -> None:
        for one in _SCOPES[: _SCOPES.index(scope) + 1]:
            digest = self._digest(who, repository, one)
            book = self._book(digest)
            book[digest] = now
            book.move_to_end(digest)
            waits = self._changes.get(digest) is not None
            if waits or not 0 <= now - self._kept.get(digest, -math.inf) < KEPT_AGAIN:
                self._kept[digest] = self._changes[digest] = now
            while len(book) > _MOST:
                oldest, _ = book.popitem(last=False)
                self._kept.pop(oldest, None)

    def revoke(self, who: str, repository: str, scope: str) -> None:
        """It was refused; so is what only those may see who may see that. Another server may have kept that too."""
        for one in _SCOPES[_SCOPES.index(scope) :]:
            digest = self._digest(who, repository, one)
            self._forget(digest)
            self._changes[digest] = None

    def take_back(self, refused: Mapping[str, float]) -> None:
        """Heed what other servers were told: when what was granted was refused."""
        for digest, at in refused.items():
            if self._book(digest).get(digest, math.inf) <= at:
                self._forget(digest)

    @property
    def changed(self) -> bool:
        """Whether something is to be kept on disk."""
        return bool(self._changes)

    def take_changes(self) -> dict[str, float | None]:
        """What is to be kept on disk since the last call: when it was granted, None where it was taken back."""
        changes, self._changes = self._changes, {}
        return changes

    def may(self, who: str, repository: str, scope: str, now: float) -> bool:
        """Whether the source said so within DECISION seconds."""
        return 0 <= now - self._granted(who, repository, scope) < DECISION

    def could(self, who: str, repository: str, scope: str, now: float) -> bool:
        """Whether it said so the last time, within LAPSED seconds: that counts while it cannot be asked."""
        return 0 <= now - self._granted(who, repository, scope) < LAPSED

    def is_open(self, repository: str, scope: str) -> bool:
        """Whether it said the last time, whenever that was, that everybody may see it."""
        return self._granted("", repository, scope) > -math.inf

    def _granted(self, who: str, repository: str, scope: str) -> float:
        digest = self._digest(who, repository, scope)
        return self._book(digest).get(digest, -math.inf)

    def _forget(self, digest: str) -> None:
        self._book(digest).pop(digest, None)
        self._kept.pop(digest, None)

    def _book(self, digest: str) -> OrderedDict[str, float]:
        return self._opened if digest.startswith(OPEN) else self._decisions

    def _digest(self, who: str, repository: str, scope: str) -> str:
        digest = hmac.digest(self._key, f"{who} {scope} {repository}".encode(), "sha256").hex()
        return digest if who else OPEN + digest


class Health:
    """Whether the source answers. Times are seconds since 1970; a clock that is set back is no reason to wait."""

    def __init__(self) -> None:
        self._away_until = 0.0
        self._answered_at = -math.inf

    def failed(self, now: float) -> None:
        self._away_until = now + AWAY

    def answered(self, now: float) -> None:
        self._away_until, self._answered_at = 0.0, now

    def reached(self, now: float) -> bool:
        """Whether it answered within REACHED seconds."""
        return abs(now - self._answered_at) < REACHED

    def away(self, now: float) -> bool:
        return 0 < self._away_until - now <= AWAY
