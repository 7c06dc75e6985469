"""What an address of a bucket names, and what the environment says of its store. Without a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from asyncfetch.errors import SourceError
from asyncfetch.sources.request import parse_source
from asyncfetch.sources.store_env import DEVELOPMENT, Way, endpoint_of, way_to

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown

S3, GS, AZ = "s3://b/m", "gs://b/m", "az://b/m"
HOME = "https://mine.blob.core.windows.net"
MINE = "abfs://b@mine.dfs.core.windows.net/m"


def parsed(text: str, **options: str) -> Any:
    return parse_source(text, kind_of=lambda _path: None, **options)


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("s3://b", {}, ("s3", "b", "", None, "")),
        ("S3A://b/", {}, ("s3", "b", "", None, "")),
        ("s3://b.c-1/a/b c%20+#é/", {}, ("s3", "b.c-1", "a/b c%20+#é/", None, "")),
        ("s3n://b/a/v1.0", {"subfolder": "text_encoder"}, ("s3", "b", "a/v1.0/text_encoder/", None, "")),
        (
            "gs://b_x/a/model-00001-of-00002.safetensors",
            {},
            ("gs", "b_x", "a/", "model-00001-of-00002.safetensors", ""),
        ),
        ("gcs://b/model.safetensors.index.json", {}, ("gs", "b", "", "model.safetensors.index.json", "")),
        ("azure://$web/a", {}, ("az", "$web", "a/", None, "")),
        ("abfss://box@mine.dfs.core.windows.net/a", {}, ("az", "box", "a/", None, "mine")),
        ("wasbs://box@mine.blob.core.chinacloudapi.cn/a", {}, ("az", "box", "a/", None, "mine")),
    ],
)
def test_addresses(text: str, options: dict[str, str], parts: tuple[object, ...]) -> None:
    """The usual spellings of each store; a path is a key as it is."""
    source = parsed(text, **options)
    assert (source.scheme, source.bucket, source.folder, source.file, source.account) == parts
    assert parsed(str(source)) == source


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3://arn:aws:s3:::x/y", {}, "names no bucket"),
        ("s3://b/a//c", {}, "empty or made of dots"),
        ("gs://b/../c", {}, "empty or made of dots"),
        (f"s3://AKIA:{PASSWORD}@b/a", {}, "has an @"),
        (f"az://b/a?sv=1&sig={SIGNATURE}", {}, "a query"),
        ("s3://b/pytorch_model.bin", {}, "neither a .safetensors file"),
        ("s3://b/a", {"revision": "main"}, "has no revisions"),
        ("s3://b/a.safetensors", {"subfolder": "x"}, "goes with a folder"),
        ("ftp://b/a", {}, "s3://, gs://, az://"),
    ],
    ids=["no bucket", "arn", "empty part", "dots", "keys", "signature", "pickle", "revision", "subfolder", "scheme"],
)
def test_no_addresses(text: str, options: dict[str, str], said: str) -> None:
    """Refused before anything is asked, without what they hold of secrets."""
    with pytest.raises(SourceError, match=said):
        parsed(text, **options)


KEYS = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": PASSWORD}
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=mine;AccountKey={PASSWORD}==;EndpointSuffix=core.example"


@pytest.mark.parametrize(
    ("source", "environ", "endpoint", "kind", "config"),
    [
        (S3, KEYS | {"AWS_DEFAULT_REGION": "r"}, "", "static", {"region": "r", "access_key_id": "A"}),
        (S3, KEYS | {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b:9/"}, "http://b:9", "static", {}),
        (S3, KEYS | {"AWS_SKIP_SIGNATURE": "TRUE"}, "", "anonymous", {"access_key_id": None}),
        (S3, {"AWS_PROFILE": "keys"}, "https://r2.example", "static", {"access_key_id": "P", "region": "auto"}),
        (S3, {"AWS_PROFILE": "keys"} | KEYS, "https://r2.example", "static", {"access_key_id": "A"}),
        (S3, {"AWS_PROFILE": "keys", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "", "static", {}),
        (S3, {"AWS_PROFILE": "sso"}, "", "library", {}),
        (S3, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, "", "chain", {}),
        (S3, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://a"}, "", "library", {}),
        (S3, {}, "", "machine", {}),
        (S3, {"AWS_EC2_METADATA_DISABLED": "true"}, "", "anonymous", {}),
        (GS, {"GOOGLE_APPLICATION_CREDENTIALS": "{home}/service.json"}, "", "static", {}),
        (GS, {"GOOGLE_APPLICATION_CREDENTIALS": "{home}/user.json"}, "", "library", {}),
        (GS, {"CLOUDSDK_CONFIG": "{home}/gcloud"}, "", "library", {}),
        (GS, {"GOOGLE_BEARER_TOKEN": TOKEN}, "", "bearer", {}),
        (GS, {"STORAGE_EMULATOR_HOST": "localhost:4443"}, "http://localhost:4443", "anonymous", {}),
        (GS, {}, "", "machine", {}),
        (AZ, {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION}, "https://mine.blob.core.example", "static", {}),
        (MINE, {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_KEY": PASSWORD}, HOME, "static", {}),
        (MINE, {"AZURE_STORAGE_ACCOUNT": "its", "AZURE_STORAGE_KEY": PASSWORD}, HOME, "machine", {"account_key": None}),
        (AZ, {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_SAS_TOKEN": f"?sig={SIGNATURE}"}, HOME, "sas", {}),
        (AZ, {"AZURE_STORAGE_USE_EMULATOR": "true"}, f"http://127.0.0.1:10000/{DEVELOPMENT['account_name']}", "static",
         dict(DEVELOPMENT)),
        (MINE, {"AZURE_CLIENT_SECRET": PASSWORD}, HOME, "chain", {}),
    ],
)  # fmt: skip
def test_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, environ: Mapping[str, str], endpoint: str, kind: str,
    config: Mapping[str, object],
) -> None:  # fmt: skip
    """Where the store is, and who asks: by the names that each store's own tools read, the more special first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {name: value.replace("{home}", str(tmp_path)) for name, value in environ.items()}
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(
        "[profile keys]\nregion = auto\nendpoint_url = https://r2.example/\n[profile sso]\nsso_session = x\n"
    )
    (tmp_path / ".aws/credentials").write_text("[keys]\naws_access_key_id = P\naws_secret_access_key = S\n")
    (tmp_path / "gcloud").mkdir()
    for name, told in (("service", "service_account"), ("user", "authorized_user")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"type": told}))
    (tmp_path / "gcloud/application_default_credentials.json").write_text('{"type": "external_account"}')
    found = parsed(source)
    assert endpoint_of(found, environ) == endpoint
    way = way_to(found, environ)
    assert way.kind == kind
    assert {name: way.config.get(name) for name in config} == config
    assert PASSWORD not in repr(way)


@pytest.mark.parametrize(
    ("source", "environ", "said"),
    [
        (S3, {"AWS_ACCESS_KEY_ID": "A"}, "go together"),
        (S3, {"AWS_PROFILE": "nobody"}, "no AWS profile 'nobody'"),
        (S3, {"AWS_CONFIG_FILE": "{home}/broken"}, "cannot be read"),
        (S3, {"AWS_ENDPOINT_URL": f"minio:9000/?x={SIGNATURE}"}, r"is no plain http\(s\) URL"),
        (S3, {"AWS_ENDPOINT_URL": f"http://me:{PASSWORD}@minio:9000"}, r"'http://minio:9000' of s3://b/m/ is no plain"),
        (GS, {"GOOGLE_APPLICATION_CREDENTIALS": "{home}/nothing"}, "cannot be read"),
        (AZ, {}, "Set AZURE_STORAGE_ACCOUNT, or write abfs://b@ACCOUNT"),
    ],
)
def test_what_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, environ: Mapping[str, str], said: str
) -> None:
    """An error that names the setting, before anything is asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "broken").write_text(f"aws_secret_access_key = {PASSWORD}\n")
    environ = {name: value.replace("{home}", str(tmp_path)) for name, value in environ.items()}
    found = parsed(source)
    with pytest.raises(SourceError, match=said):
        endpoint_of(found, environ), way_to(found, environ)
    (tmp_path / "broken").unlink()


AZURE = {"AZURE_STORAGE_ACCOUNT": "mine"}


@pytest.mark.parametrize(
    ("source", "environ", "name"),
    [
        (GS, {"GOOGLE_BEARER_TOKEN": TOKEN}, "bearer_token"),
        (S3, {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": PASSWORD}, "secret_access_key"),
        (S3, {**KEYS, "AWS_SESSION_TOKEN": TOKEN}, "session_token"),
        (S3, {"AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_ACCESS_KEY_ID": "A"}, "access_key_id"),
        (AZ, {**AZURE, "AZURE_STORAGE_SAS_TOKEN": f"?sv=1&sig={SIGNATURE}"}, "sas_key"),
        (AZ, {**AZURE, "AZURE_STORAGE_KEY": PASSWORD}, "account_key"),
        (AZ, {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=mine;AccountKey={PASSWORD}"}, "account_key"),
    ],
)
def test_secrets_as_files_and_shells_leave_them(source: str, environ: dict[str, str], name: str) -> None:
    """What is put around a secret is no part of it. One that cannot be one is an error that says which it is."""
    last = list(environ)[-1]
    clean = way_to(parsed(source), environ).config[name]
    for around in ("{}\n", "\ufeff{}\r\n", "  {}\t"):
        assert way_to(parsed(source), environ | {last: around.format(environ[last])}).config[name] == clean
    for wrong in ("{}\0", "{}\x1b[0m", "{}é"):
        with pytest.raises(SourceError, match=last) as caught:
            way_to(parsed(source), environ | {last: wrong.format(environ[last])})
        assert not shown(f"{caught.value!r} {caught.value.hint}")


def test_a_secret_of_a_profile(tmp_path: Path) -> None:
    """The setting and its profile are named."""
    (tmp_path / "keys").write_text("[work]\naws_access_key_id = A\naws_secret_access_key = x\x01\n")
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"), "AWS_PROFILE": "work", "HOME": str(tmp_path)}
    with pytest.raises(SourceError, match=r"aws_secret_access_key .*AWS profile 'work'"):
        way_to(parsed(S3), environ)


def test_nothing_but_a_line_end_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the variable were not set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert way_to(parsed(GS), {"GOOGLE_BEARER_TOKEN": "\n", "NO_GCE_CHECK": "1"}).kind == "anonymous"


def test_a_way_is_kept_to_itself() -> None:
    """Credentials are in no repr."""
    assert PASSWORD not in repr(Way("static", "found", {"secret_access_key": PASSWORD}))
