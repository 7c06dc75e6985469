"""What stands for a secret in tests: wherever one passes a token, a password or a signed link, it passes these.

Every test is searched for them afterwards, in all that it said and left: see secrets_watch.py.
"""

from __future__ import annotations

import base64
import re

__all__ = ["PASSWORD", "SIGNATURE", "TOKEN", "shown"]

_MARK = "7canary7canary7"  # no encoding of URLs, JSON or Python changes it
TOKEN = f"hf_{_MARK}token"
SIGNATURE = f"{_MARK}-signature"
PASSWORD = f"{_MARK}-password"

# In base64, as in `Authorization: Basic`, the mark looks different at each of three offsets.
_BASE64 = [base64.b64encode(b" " * shift + _MARK.encode()).decode()[4 : 4 + 12] for shift in range(3)]
# The links of asyncfetch's own server are signed with digits that no one knows beforehand.
_LINK = "X-Amz-Signature="
_SIGNS = [_MARK, *_BASE64, _LINK]
_SIGNS_IN_BYTES = [sign.encode() for sign in _SIGNS]
_ANY = "|".join([_MARK, *_BASE64, _LINK + "[0-9a-f]{16}"])
_TEXT, _BYTES = re.compile(_ANY), re.compile(_ANY.encode())


def shown(said: str | bytes) -> str | None:
    """The place at which `said` shows a secret; None if it shows none."""
    if isinstance(said, str):
        found = any(sign in said for sign in _SIGNS) and _TEXT.search(said)
    else:
        found = any(sign in said for sign in _SIGNS_IN_BYTES) and _BYTES.search(said)
    if not found:
        return None
    place = said[max(found.start() - 60, 0) : found.end() + 20]
    return place if isinstance(place, str) else place.decode("latin-1")
