"""Whose certificates are trusted: those that the environment names, or else the system's, as curl and the Hub's own
tools do. Where a company inspects TLS, its root is in the system's store, and in no list of ours.

What `truststore` does for a handshake, on macOS and Windows. Elsewhere the store is a file, which is read once
here: truststore reads it for each connection, and OpenSSL before 3.4 keeps each copy
(https://github.com/sethmlarson/truststore/issues/212).
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

import httpx

from ..tasks import forks_wait

if sys.platform == "darwin" or sys.platform == "win32":
    import truststore

__all__ = ["trusted"]

# Where distributions have it that Python's OpenSSL was not built for: those of truststore,
# https://github.com/sethmlarson/truststore/blob/main/src/truststore/_openssl.py
_BUNDLES = (
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
)
_MORE = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_making = threading.Lock()


def trusted(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The context of connections. Takes 30 ms the first time.

    SSL_CERT_FILE and SSL_CERT_DIR stand for themselves, and alone. Without them it is the system's store, and what
    REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE name besides. Raises OSError that says which variable is wrong.
    """
    file, folder, *more = (environ.get(name, "").strip() for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", *_MORE))
    with forks_wait(), _making:  # it takes 30 ms: who asks at the same time waits for it
        return _named(file, folder) if file or folder else _system(tuple(filter(None, more)))


@lru_cache(maxsize=4)
def _named(file: str, folder: str) -> ssl.SSLContext:
    if file:
        try:
            return ssl.create_default_context(cafile=file, capath=folder or None)
        except OSError as error:
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise OSError(f"SSL_CERT_FILE names {file!r}: {why}") from error
    if not any(_holds_certificates(part) for part in folder.split(os.pathsep)):
        # OpenSSL says nothing of that, and then trusts nobody.
        raise OSError(f"SSL_CERT_DIR names {folder!r}, which has no certificates as `openssl rehash` names them")
    return ssl.create_default_context(capath=folder)


@lru_cache(maxsize=4)
def _system(more: Iterable[str]) -> ssl.SSLContext:
    context = _system_store()
    if keys := os.environ.get("SSLKEYLOGFILE"):  # as ssl.create_default_context does
        with suppress(OSError):
            context.keylog_filename = keys
    for path in more:
        with suppress(OSError):
            context.load_verify_locations(**{"capath" if os.path.isdir(path) else "cafile": path})
    return context


def _system_store() -> ssl.SSLContext:
    """The system's store; that of certifi where there is none, as in a slim container."""
    if sys.platform == "darwin" or sys.platform == "win32":
        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    built_for = ssl.get_default_verify_paths()  # not what it makes of SSL_CERT_FILE
    loaded = _holds_certificates(built_for.openssl_capath) and _load(context, capath=built_for.openssl_capath)
    loaded = _load(context, cafile=built_for.openssl_cafile) or loaded
    if loaded or any(_load(context, cafile=bundle) for bundle in _BUNDLES):
        return context
    return httpx.create_ssl_context(trust_env=False)


def _load(context: ssl.SSLContext, **place: str) -> bool:
    try:
        context.load_verify_locations(**place)
    except OSError:  # not there, not for us to read, or no certificate in it
        return False
    return True


def _holds_certificates(folder: str) -> bool:
    try:
        return any(re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name) for name in os.listdir(folder))
    except OSError:
        return False
