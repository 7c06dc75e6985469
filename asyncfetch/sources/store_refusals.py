"""What the refusals of a bucket's store mean, in words of ours.

No text of obstore's is shown as it is: it holds URLs and whole answers, and those hold signatures.
"""

from __future__ import annotations

import re
from typing import Protocol

from ..errors import AccessError, AsyncfetchError, NetworkError, NotFoundError, SourceError
from ..network.retry import may_pass
from ..words import fit_to_show
from .bucket import BucketSource

__all__ = ["refusal", "refusal_of_credentials", "refusal_of_listing", "said_by", "words_in"]

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "FilesystemNotFound", "ContainerBeingDeleted"}
_HINTS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`.",
    "az": "Set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN.",
}


class Refusing(Protocol):
    """The store: which source it is, whether it is asked without credentials, and which were found."""

    @property
    def source(self) -> BucketSource: ...

    @property
    def anonymous(self) -> bool: ...

    @property
    def found(self) -> str: ...


def words_in(body: str) -> tuple[str, str]:
    """The code and the message of a store's refusal, which is XML; of each "" for none.

    The rest of it is not shown: it repeats the request, with its signature.
    """
    code, said = (re.search(rf"<{name}>([^<]{{1,1000}})<", body) for name in ("Code", "Message"))
    return (code[1].strip() if code else ""), (fit_to_show(said[1].split("\n")[0]) if said else "")


def refusal(
    store: Refusing, what: str, status: int, code: str, said: str, clock: float = 0.0
) -> AsyncfetchError | None:
    """What a refusal means, of an object or of a listing; None if it is none. `what` was asked for.

    `clock`: seconds that the store's clock is ahead of ours.
    """
    source = store.source
    if code in _NO_BUCKET:
        kind = "container" if source.scheme == "az" else "bucket"
        hint = f"It was looked for at {source.endpoint}." if source.endpoint else "Check its name."
        return NotFoundError(f"There is no {kind} {source.bucket!r}.", hint=hint)
    hidden = source.scheme == "az" and store.anonymous and code == "ResourceNotFound"  # said of what is not public
    tokens = status == 400 and re.search("Token|Authorization|Authentication|Credential|AccessKey", code)
    if status not in (401, 403) and not (hidden or tokens or code == "PublicAccessNotPermitted"):
        return None
    words = " ".join(filter(None, [str(status), code, said and f"({said.rstrip('.')})"]))
    message = f"{what} was refused: the store answered {words}; {store.found}."
    if "Skewed" in code or abs(clock) > 300:
        minutes = f"{abs(clock) / 60:,.0f} minutes {'behind' if clock > 0 else 'ahead'}" if clock else "wrong"
        return AccessError(message, hint=f"This machine's clock is {minutes}, and signatures count by it: set it.")
    if store.anonymous:
        return AccessError(message, hint=_HINTS[source.scheme])
    hint = "Check that they are right and may read it."
    if code in ("", "AccessDenied"):
        hint += " Where the bucket may not be listed, the store answers so for what is not there, too."
    return AccessError(message, hint=hint)


def said_by(error: BaseException | None) -> str:
    """What obstore says, in a few words: a status with the store's own code and message, or its first line."""
    text = str(error).partition("\n\nDebug source")[0]
    status, (code, said) = re.search(r"status code: (\d{3})", text), words_in(text)
    if status is not None:
        return " ".join(filter(None, [f"answered {status[1]}", code, said and f"({said.rstrip('.')})"]))
    for sign, meaning in (("timed out", "it did not answer in time"), ("error sending request", "it was not reached")):
        if sign in text:
            return meaning
    return fit_to_show(re.sub(r"^Generic \w+ error: ", "", text)).rstrip(".")


def refusal_of_credentials(error: BaseException | None, store: Refusing) -> AsyncfetchError:
    """An error of ours for one that kept us from asking: of settings, or of who gives credentials."""
    text, source = str(error), store.source
    home = source.at("")
    foreign = type(error).__module__.partition(".")[0] not in ("obstore", "builtins")
    if foreign or type(error).__name__ == "UnauthenticatedError" or "redential" in text or "Error performing" in text:
        return AccessError(f"No credentials for {home}: {said_by(error)}.", hint=_HINTS[source.scheme])
    return SourceError(f"{home} cannot be asked: {said_by(error)}.")


def refusal_of_listing(error: BaseException | None, store: Refusing) -> AsyncfetchError:
    """An error of ours for one of a listing."""
    text, kind, source = str(error), type(error).__name__, store.source
    status, (code, said) = re.search(r"status code: (\d{3})", text), words_in(text)
    number = int(status[1]) if status else {"PermissionDeniedError": 403, "UnauthenticatedError": 401}.get(kind, 0)
    known = refusal(store, f"The listing of {source.at('')}", number, code, said)
    if known is None and isinstance(error, FileNotFoundError):
        known = NotFoundError(f"There is no bucket {source.bucket!r}.", hint="Check its name.")
    if known is not None:
        return known
    if kind == "InvalidPathError":
        hint = "Rename it, or name the files that you want."
        return SourceError(f"{source.at('')} has an object whose key is no path: {said_by(error)}.", hint=hint)
    failed = NetworkError(f"the listing failed: {said_by(error)}", url=source.endpoint or source.address)
    failed.transient = not number or may_pass(number)
    return failed
