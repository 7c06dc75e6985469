"""URLs that are good for a while and for one file, as a storage service signs them. Pure, without I/O."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from ...errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Refused", "Signer"]


class Refused(NamedTuple):
    """Why a storage service does not give the bytes: a status, and S3's code and message."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Signer:
    """Signs the URLs of the bytes and checks them, as a storage service does. `lifetime` is seconds."""

    secret: bytes
    lifetime: float

    def __post_init__(self) -> None:
        if not self.secret:
            raise SourceError("The secret that signs URLs must not be empty.")

    def query(self, digest: str, name: str, path: str) -> str:
        """The query of a signed URL for the file `path` of the model `name`."""
        fields = {"repository": name, "file": path, "Expires": str(int(time.time() + self.lifetime))}
        return urlencode({**fields, "X-Amz-Signature": self._sign(digest, fields)})

    def refusal(self, digest: str, query: Mapping[str, str]) -> Refused | None:
        """Why a URL is not, or no longer, good; None when it is."""
        fields = {name: query.get(name, "") for name in ("repository", "file", "Expires")}
        signature = query.get("X-Amz-Signature", "").encode()
        if not hmac.compare_digest(signature, self._sign(digest, fields).encode()):
            return Refused(403, "SignatureDoesNotMatch", "The signature does not match.")
        if time.time() >= int(fields["Expires"]):
            return Refused(403, "AccessDenied", "Request has expired")
        return None

    def _sign(self, digest: str, fields: Mapping[str, str]) -> str:
        text = json.dumps([digest, fields["repository"], fields["file"], fields["Expires"]])
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()
