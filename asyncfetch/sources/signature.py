"""Two kinds of links that obstore cannot sign, made of one that it has signed. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

__all__ = ["for_blob", "with_header"]

_SIGNED, _SIGNATURE = "X-Amz-SignedHeaders", "X-Amz-Signature"


def with_header(method: str, url: str, secret: str, name: str, value: str) -> str:
    """A link to S3 signed for `method`, signed anew so that the header (in lower case) may and must go along.

    By https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    """
    parts = urlsplit(url)
    fields = dict(parse_qsl(parts.query, keep_blank_values=True))
    fields.pop(_SIGNATURE, None)
    headers = {"host": parts.netloc, name: value}
    fields[_SIGNED] = ";".join(sorted(headers))
    query = "&".join(sorted(f"{quote(key, safe='-_.~')}={quote(text, safe='-_.~')}" for key, text in fields.items()))
    signed = "".join(f"{key}:{headers[key]}\n" for key in sorted(headers))
    request = f"{method}\n{parts.path}\n{query}\n{signed}\n{fields[_SIGNED]}\nUNSIGNED-PAYLOAD"
    scope = fields["X-Amz-Credential"].partition("/")[2]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{fields['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{secret}".encode()
    for step in (*scope.split("/"), text):
        key = hmac.digest(key, step.encode(), "sha256")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, f"{query}&{_SIGNATURE}={key.hex()}", ""))


def for_blob(url: str, secret: str, resource: str) -> str:
    """A link to a blob of Azure, signed anew by the account's key: `resource` is "account/container/name" as they are.

    obstore signs the name percent-encoded, which Azure takes for another one
    (https://learn.microsoft.com/rest/api/storageservices/create-service-sas#version-2020-12-06-and-later).
    """
    parts = urlsplit(url)
    fields = dict(parse_qsl(parts.query))
    told = [fields.get(name, "") for name in ("sp", "st", "se")]
    rest = [fields.get(name, "") for name in ("si", "sip", "spr", "sv", "sr")]
    text = "\n".join([*told, f"/blob/{resource}", *rest, *[""] * 7])  # neither a snapshot nor any header is named
    digest = hmac.digest(base64.b64decode(secret), text.encode(), "sha256")
    fields["sig"] = base64.b64encode(digest).decode()
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items())
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
