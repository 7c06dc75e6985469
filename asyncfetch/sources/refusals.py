"""What it means when the Hub gives no file: one error for each reason, in the Hub's own words. Pure.

The reasons are its X-Error-Code, the status, and where neither tells enough, X-Error-Message:
https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_http.py
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ..errors import (
    AccessError,
    AsyncfetchError,
    EntryNotFoundError,
    GatedRepositoryError,
    NetworkError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from ..network.transport import Reply
from ..storage.cache import is_commit
from ..words import fit_to_show

__all__ = ["Asked", "refusal"]

# 401 means missing, private or a bad token. "Invalid username or password." is said of what is missing too.
_BAD_TOKEN = re.compile(
    r"\bexpired\b|\brevoked\b|\binvalid credentials\b|\b(invalid|unknown|malformed)\b.*\btoken\b"
    r"|\btoken\b.*\b(invalid|unknown|malformed|not valid)\b",
    re.IGNORECASE,
)
_SAYS_NOTHING_NEW = re.compile(r"(?:repository|model|entry|revision) not found\.?", re.IGNORECASE)
_FINE_GRAINED = r"\bfine-?grained\b|\btoken settings\b"
_GATED = (  # why a reader is not let in, and what to do about it; the first that fits
    (_FINE_GRAINED, "Let the token read gated repositories, where it was made: settings/tokens of the Hub."),
    (r"\bawait|\bpending\b|\breview", "Wait until its authors have decided; {page} tells."),
    (
        r"\breject|\bdenied\b|\bdeclined\b",
        "Its authors decide who may read it: see {page}, or take another repository.",
    ),
    (r"\baccept\b|\bagree\b|\bterms\b|\bconditions\b", None),
    (
        r"\bnot in the authorized list\b|\bask for access\b|\brequest access\b",
        "Ask for access at {page}, as who has the token.",
    ),
    (r"\blog in\b|\bauthenticated\b|\bsign in\b", "Set HF_TOKEN or pass token=; access is asked for at {page}."),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, and as whom. `page` is the repository's, without credentials."""

    repo_id: str
    file: str
    revision: str
    page: str
    authenticated: bool


def refusal(reply: Reply, asked: Asked) -> AsyncfetchError:
    """The error that an answer of 400 or more stands for."""
    status, code, said = reply.status, reply.headers.get("x-error-code", ""), _words(reply)
    name = f"{asked.repo_id}@{asked.revision}"
    if code == "RevisionNotFound":
        return RevisionNotFoundError(asked.repo_id, asked.revision)
    if code == "EntryNotFound":
        commit = reply.headers.get("x-repo-commit", asked.revision)
        return EntryNotFoundError(asked.file, name, commit=commit if is_commit(commit) else None)
    if code == "GatedRepo":
        return GatedRepositoryError(asked.repo_id, asked.page, said=said, hint=_gated_hint(said, asked.page))
    if said == "Access to this resource is disabled.":
        return AccessError(f"Access to {asked.repo_id!r} has been disabled.", hint="")
    if status in (401, 403) and _BAD_TOKEN.search(said):
        hint = "Renew the token (HF_TOKEN, or `hf auth login`). A public repository needs none: then unset HF_TOKEN."
        return AccessError(f"The Hub does not accept the token: {said.rstrip('.')}.", hint=hint)
    if code == "RepoNotFound" or status == 401:
        return RepositoryNotFoundError(asked.repo_id, authenticated=asked.authenticated, said=said)
    if status == 403:
        advice = _GATED[0][1] if re.search(_FINE_GRAINED, said, re.IGNORECASE) else None
        return AccessError(f"The Hub refuses {asked.file!r} of {name}{said and f': {said}'}.", hint=advice)
    if status == 404:
        revision = asked.revision
        return EntryNotFoundError(asked.file, name, commit=revision if is_commit(revision) else None)
    why = ", ".join(filter(None, [fit_to_show(code, 60), said]))
    error = NetworkError(f"the server answered {status}{why and f' ({why})'}", url=reply.url)
    error.transient = False
    return error


def _words(reply: Reply) -> str:
    """What the Hub says about its answer, in the header or in JSON; "" where that is nothing new."""
    said = reply.headers.get("x-error-message", "")
    if not said and "json" in reply.headers.get("content-type", "") and not reply.truncated:
        try:
            told = json.loads(reply.body)
            said = told["error"] if isinstance(told, dict) else ""
        except (ValueError, KeyError, RecursionError):
            said = ""
    said = fit_to_show(said) if isinstance(said, str) else ""
    return "" if _SAYS_NOTHING_NEW.fullmatch(said) else said


def _gated_hint(said: str, page: str) -> str | None:
    hint = next((hint for sign, hint in _GATED if re.search(sign, said, re.IGNORECASE)), None)
    return hint and hint.format(page=page)
