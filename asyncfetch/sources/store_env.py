"""Where a bucket's store is and who asks it, by the variables and files that the stores' own tools read.

What is found decides how obstore is made (`stores.py`). A way of its own to credentials is left to obstore, or to
the provider's library where obstore lacks it: profiles with SSO or roles of AWS, users of Google.
"""

from __future__ import annotations

import configparser
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import SourceError, redact_url
from ..storage.roots import expanded
from .bucket import BucketSource
from .settings import cleaned

__all__ = ["DEVELOPMENT", "Way", "endpoint_of", "way_to"]

# Azurite's, which its documentation tells all the world
# (https://learn.microsoft.com/azure/storage/common/storage-connect-azurite).
DEVELOPMENT = {
    "account_name": "devstoreaccount1",
    "account_key": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
}
_TRUE = {"1", "on", "yes", "true", "y"}


@dataclass(frozen=True, slots=True)
class Way:
    """How a bucket is asked. `config` is what obstore is told.

    `kind`: "static": what signs is in `config`. "bearer": a token in it goes along in a header. "sas": a signature in
    it goes behind each URL. "chain": obstore has been told where credentials come from. "library": the provider's
    library (`library`) knows. "machine": perhaps the machine itself has some, at `machine`. "anonymous": nobody asks.
    `found` says, for messages, what was found.
    """

    kind: Literal["static", "bearer", "sas", "chain", "library", "machine", "anonymous"]
    found: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    library: str = ""
    machine: str = ""


def endpoint_of(source: BucketSource, environ: Mapping[str, str]) -> str:
    """Where the store is asked: a URL; "" for the provider's own place. Reads files. Raises SourceError."""
    match source.scheme:
        case "s3":
            endpoint = _aws_endpoint(environ)
        case "gs":
            endpoint = environ.get("GOOGLE_BASE_URL") or environ.get("STORAGE_EMULATOR_HOST", "")
            endpoint = f"http://{endpoint}" if endpoint and "://" not in endpoint else endpoint
        case _:
            endpoint = _azure_endpoint(source, environ)
    if endpoint and not re.fullmatch(r"https?://[^\s@?#]+", endpoint, re.IGNORECASE | re.ASCII):
        hint = "Write it as https://host:port, without credentials."
        raise SourceError(f"The endpoint {redact_url(endpoint)!r} of {source} is no plain http(s) URL.", hint=hint)
    return endpoint.rstrip("/")


def way_to(source: BucketSource, environ: Mapping[str, str]) -> Way:
    """How to ask the store of a bucket. Reads files. Raises SourceError where that cannot be known."""
    match source.scheme:
        case "s3":
            return _way_to_aws(environ)
        case "gs":
            return _way_to_google(environ)
        case _:
            return _way_to_azure(source, environ)


def _secret(settings: Mapping[str, str], name: str, where: str = "") -> str | None:
    """A key, a token or a signature as it can be sent; None for nothing. Raises SourceError for what can be none."""
    return cleaned(settings.get(name), f"What {name} is set to{where}")


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in _TRUE


# -- S3 and what speaks as it does ---------------------------------------------------------------------------------


def _aws_endpoint(environ: Mapping[str, str]) -> str:
    """https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html"""
    if _is_true(environ, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        return ""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next(filter(None, map(environ.get, names)), "") or _profile(environ).get("endpoint_url", "")


def _way_to_aws(environ: Mapping[str, str]) -> Way:
    profile = _profile(environ)
    config: dict[str, Any] = {}
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    if region:
        config["region"] = region
    if _is_true(environ, "AWS_SKIP_SIGNATURE"):
        return Way("anonymous", "AWS_SKIP_SIGNATURE is set", config)
    names, named = ("access_key_id", "secret_access_key", "session_token"), _named(environ)
    for found, where, prefix in (("AWS_ACCESS_KEY_ID is used", environ, "AWS_"), (named, profile, "aws_")):
        spelt = {name: prefix + (name.upper() if prefix == "AWS_" else name) for name in names}
        keys = {name: _secret(where, spelt[name], "" if where is environ else f" ({named})") for name in names}
        if keys["access_key_id"] and keys["secret_access_key"]:
            return Way("static", found, config | {name: key for name, key in keys.items() if key})
        if keys["access_key_id"] or keys["secret_access_key"]:
            raise SourceError("Of the AWS credentials one half is set: an access key id and a secret go together.")
    for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        if environ.get(name):
            return Way("chain", f"{name} is used", config)
    if environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        known = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")  # obstore asks there with such a token alone
        found = "AWS_CONTAINER_CREDENTIALS_FULL_URI is used"
        return Way("chain", found, config) if known else Way("library", found, config, library="boto3")
    if any(name.startswith("sso_") or name in ("role_arn", "credential_process") for name in profile):
        return Way("library", _named(environ), config, library="boto3")
    if _is_true(environ, "AWS_EC2_METADATA_DISABLED"):
        return Way("anonymous", "no AWS credentials were found", config)
    machine = environ.get("AWS_METADATA_ENDPOINT") or "http://169.254.169.254"
    return Way("machine", "no AWS credentials were found", config, machine=machine)


def _named(environ: Mapping[str, str]) -> str:
    return f"the AWS profile {environ.get('AWS_PROFILE') or 'default'!r} is used"


def _profile(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of the chosen profile: https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html"""
    name = environ.get("AWS_PROFILE", "")
    settings: dict[str, str] = {}
    there = False
    for variable, usual, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", f"profile {name}" if name not in ("", "default") else "default"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name or "default"),
    ):
        path = expanded(environ.get(variable) or usual)
        sections = _sections_of(path)
        if sections is None:  # what was raised shows lines of it: so it is no context of ours
            raise SourceError(f"The file {str(path)!r} of AWS cannot be read.", hint=f"See {variable}.")
        there = there or section in sections
        settings |= sections.get(section, {})
    if name and not there:
        raise SourceError(f"There is no AWS profile {name!r}.", hint="Check AWS_PROFILE.")
    return settings


def _sections_of(path: Path | None) -> dict[str, dict[str, str]] | None:
    """The sections of a file of settings, none where there is no such file; None for one that cannot be read."""
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        parser.read_string(path.read_text("utf-8") if path is not None else "")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, configparser.Error):
        return None
    return {name: dict(parser.items(name)) for name in parser.sections()}


# -- Google Cloud Storage --------------------------------------------------------------------------------------------


def _way_to_google(environ: Mapping[str, str]) -> Way:
    if _is_true(environ, "GOOGLE_SKIP_SIGNATURE"):
        return Way("anonymous", "GOOGLE_SKIP_SIGNATURE is set")
    if token := _secret(environ, "GOOGLE_BEARER_TOKEN"):
        return Way("bearer", "GOOGLE_BEARER_TOKEN is used", {"bearer_token": token})
    if environ.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        config = {"service_account_key": environ["GOOGLE_SERVICE_ACCOUNT_KEY"]}
        return Way("static", "GOOGLE_SERVICE_ACCOUNT_KEY is used", config)
    names = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
    found = next((name for name in names if environ.get(name)), None)
    home = environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    path = expanded(environ[found] if found else os.path.join(home, "application_default_credentials.json"))
    said = f"{found} is used" if found else "the credentials of `gcloud auth application-default login` are used"
    if path is not None and (found or path.exists()):
        kind = _kind_of(path, found or "gcloud")
        if kind == "service_account":
            return Way("static", said, {"service_account": str(path)})
        return Way("library", said, library="google-auth")
    if environ.get("STORAGE_EMULATOR_HOST") or _is_true(environ, "NO_GCE_CHECK"):
        return Way("anonymous", "no Google credentials were found")
    machine = f"http://{environ.get('GCE_METADATA_HOST') or '169.254.169.254'}"
    return Way("machine", "no Google credentials were found", library="google-auth", machine=machine)


def _kind_of(path: Path, name: str) -> str:
    """What kind of credentials a file of Google's holds. Raises SourceError."""
    told = None
    with suppress(OSError, ValueError, RecursionError):  # which hold the text: so they are no context of ours
        told = json.loads(path.read_bytes())
    if not isinstance(told, dict):
        raise SourceError(f"The credentials in {str(path)!r} cannot be read.", hint=f"See {name}.")
    return str(told.get("type", ""))


# -- Azure -----------------------------------------------------------------------------------------------------------


def _azure(source: BucketSource, environ: Mapping[str, str]) -> dict[str, str]:
    """What is known without asking anybody: account_name, account_key, sas_key, endpoint. As `az storage` reads it.

    Keys of another account than the one that the address names are left out.
    """
    if _is_true(environ, "AZURE_STORAGE_USE_EMULATOR"):
        text = "UseDevelopmentStorage=true"
    else:
        text = _secret(environ, "AZURE_STORAGE_CONNECTION_STRING") or ""
    parts = {name.strip().lower(): value for name, _, value in (one.partition("=") for one in text.split(";"))}
    told = {
        "account_name": parts.get("accountname", ""),
        "account_key": parts.get("accountkey", ""),
        "sas_key": parts.get("sharedaccesssignature", ""),
        "endpoint": parts.get("blobendpoint", ""),
    }
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        home = environ.get("AZURITE_BLOB_STORAGE_URL") or "http://127.0.0.1:10000"
        told |= DEVELOPMENT | {"endpoint": f"{home.rstrip('/')}/{DEVELOPMENT['account_name']}"}
    elif told["account_name"] and not told["endpoint"] and parts.get("endpointsuffix"):
        scheme = parts.get("defaultendpointsprotocol", "https")
        told["endpoint"] = f"{scheme}://{told['account_name']}.blob.{parts['endpointsuffix']}"
    for name, *variables in (
        ("account_name", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
        ("account_key", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"),
        ("sas_key", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
        ("endpoint", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    ):
        told[name] = told[name] or next(filter(None, (_secret(environ, variable) for variable in variables)), "")
    if source.account and source.account != told["account_name"]:
        told = {"account_name": source.account}
    return {name: value for name, value in told.items() if value}


def _azure_endpoint(source: BucketSource, environ: Mapping[str, str]) -> str:
    told = _azure(source, environ)
    if told.get("endpoint"):
        return told["endpoint"].partition("?")[0]
    if told.get("account_name"):
        return f"https://{told['account_name']}.blob.core.windows.net"
    hint = f"Set AZURE_STORAGE_ACCOUNT, or write abfs://{source.bucket}@ACCOUNT.dfs.core.windows.net/{source.folder}"
    raise SourceError(f"Whose storage account {source} is in is not known.", hint=f"{hint}.")


def _way_to_azure(source: BucketSource, environ: Mapping[str, str]) -> Way:
    told = _azure(source, environ)
    account = {"account_name": told.get("account_name", "account")}
    if _is_true(environ, "AZURE_SKIP_SIGNATURE"):
        return Way("anonymous", "AZURE_SKIP_SIGNATURE is set", account)
    if told.get("account_key"):
        return Way("static", "the key of the storage account is used", account | {"account_key": told["account_key"]})
    if told.get("sas_key"):
        return Way("sas", "a shared access signature is used", account | {"sas_key": told["sas_key"].lstrip("?")})
    for name in ("AZURE_STORAGE_TOKEN", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_SECRET",
                 "AZURE_STORAGE_CLIENT_SECRET", "AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"):  # fmt: skip
        if environ.get(name):
            return Way("chain", f"{name} is used", account)
    if _is_true(environ, "AZURE_USE_AZURE_CLI"):
        return Way("chain", "`az login` is used", account)
    return Way("machine", "no Azure credentials were found", account, library="azure-identity",
               machine="http://169.254.169.254")  # fmt: skip
