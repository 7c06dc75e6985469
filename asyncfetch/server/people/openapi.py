"""The description of the endpoints in control.py, as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...policy import __version__

__all__ = ["openapi_document"]

_Schema = dict[str, Any]
_Answers = Mapping[str, tuple[str, _Schema | None]]  # by status: what it means, and what it holds
_NULL = {"type": "null"}


def _object(properties: _Schema, *, required: list[str] | None = None, closed: bool = False) -> _Schema:
    found: _Schema = {"type": "object", "properties": properties}
    found["required"] = list(properties) if required is None else required
    return found | ({"additionalProperties": False} if closed else {})


def _maybe(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, _NULL]}


def _list(schema: _Schema) -> _Schema:
    return {"type": "array", "items": schema}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: _Schema = {"type": "string"}
_TEXTS: _Schema = _list(_TEXT)
_FLAG: _Schema = {"type": "boolean"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_BYTES: _Schema = {"type": "integer", "minimum": 0, "description": "Bytes."}
_RATE: _Schema = _maybe({"type": "integer", "minimum": 0, "description": "Bytes a second."})
_SECONDS: _Schema = _maybe({"type": "number", "minimum": 0, "description": "Seconds."})
_TIME: _Schema = {"type": "number", "description": "Seconds since 1970."}
_NAME: _Schema = {"type": "string", "examples": ["org/model", "datasets/org/name"]}
_HELD: _Schema = {"reason": _maybe(_TEXT), "retry_in": _SECONDS}

_PREFETCH = _object(
    {
        "source": {
            "type": "string",
            "description": "An id, `org/model` or `datasets/org/name`, with `@revision` or without; or the address of "
            "a page of the source.",
            "examples": ["org/model", "org/model@main", "datasets/org/name"],
        },
        "revision": {"type": "string", "description": "Branch, tag or commit; main without it."},
        "repo_type": {"enum": ["model", "dataset"]},
        "include": _TEXTS
        | {
            "description": "Globs over all files. Without them come what holds no weights, and the safetensors; of a "
            "dataset, and of a repository without safetensors, everything."
        },
        "exclude": _TEXTS | {"description": "Globs over files to leave out."},
    },
    required=["source"],
    closed=True,
)
_REFUSAL = _object({"code": _TEXT, "message": _TEXT, "hint": _TEXT})
_JOB = _object(
    {
        "id": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
        "task": {"enum": ["prefetch", "verify"]},
        "repository": _NAME,
        "revision": _TEXT,
        "include": _TEXTS,
        "exclude": _TEXTS,
        "state": {"enum": ["queued", "running", "needs_token", "done", "failed", "cancelled"]},
        "created": _TIME,
        "started": _maybe(_TIME),
        "ended": _maybe(_TIME),
        "commit": _maybe(_TEXT),
        "files": _COUNT,
        "files_done": _COUNT,
        "size": _BYTES,
        "received": _BYTES,
        "rate": _RATE,
        "reason": _maybe(_TEXT) | {"description": "Why nothing moves for now."},
        "error": _maybe(_ref("Refusal")),
    }
)
_JOB_FILE = _object(
    {
        "file": _TEXT,
        "size": _BYTES,
        "received": _BYTES,
        "fetched": _BYTES | {"description": "Bytes that came from the source for it."},
        "etag": _maybe(_TEXT),
        "done": _FLAG,
        "retries": _COUNT,
        **_HELD,
        "error": _maybe(_ref("Refusal")),
    }
)
_KEPT = _object(
    {
        "repository": _NAME,
        "files": _COUNT,
        "size": _BYTES,
        "last_read": _maybe(_TIME),
        "hits": _COUNT,
        "pinned": _FLAG,
    }
)
_KEPT_FILE = _object(
    {
        "names": _TEXTS,
        "etag": _TEXT,
        "size": _BYTES,
        "at": _TIME,
        "last_read": _maybe(_TIME),
        "hits": _COUNT,
    }
)
_ARRIVING = _object(
    {
        "repository": _NAME,
        "file": _TEXT,
        "size": _BYTES,
        "received": _BYTES,
        "state": {
            "enum": [
                *("queued", "not_started", "downloading", "backoff", "waiting"),
                *("verifying", "verified", "unchecked", "cached"),
            ]
        },
        "rate": _RATE,
        "seconds_left": _SECONDS,
        "retries": _COUNT | {"description": "Requests that were sent again."},
        "restarts": _COUNT | {"description": "How often its hash was wrong."},
        "readers": _COUNT | {"description": "Clients that wait for it or read it."},
        **_HELD,
    }
)
_SOURCE = _object(
    {
        "url": _TEXT,
        "state": {"enum": ["well", "away", "limiting"]},
        "reason": _maybe(_TEXT),
        "retry_after": _SECONDS,
        "rate_limit": _maybe(_object({"remaining": _COUNT, "seconds": _COUNT})),
    }
)
_TRAFFIC = _object(
    {
        "served": _BYTES,
        "fetched": _BYTES,
        "saved": _BYTES,
        "asked": _COUNT,
        "retries": _COUNT,
        "wrong_hashes": _COUNT,
    }
)
_FAILURE = _object({"at": _TIME, "repository": _NAME, "file": _TEXT, "code": _TEXT, "message": _TEXT, "hint": _TEXT})
_STATE = _object(
    {
        "source": _SOURCE,
        "arriving": _list(_ref("Arriving")),
        "arriving_in_all": _COUNT,
        "jobs": _list(_ref("Job")),
        "jobs_in_all": _COUNT,
        "kept": _list(_ref("Kept")),
        "kept_named": {**_COUNT, "description": "How many of those that are kept may be named to who asks."},
        "kept_in_all": _COUNT,
        "room": _object({"used": _BYTES, "max_size": _maybe(_BYTES), "min_free": _maybe(_BYTES)}),
        "traffic": _TRAFFIC,
        "failures": _list(_FAILURE),
    }
)
_SCHEMAS = {
    "Prefetch": _PREFETCH,
    "Refusal": _REFUSAL,
    "Job": _JOB,
    "JobWithFiles": {"allOf": [_ref("Job"), _object({"each": _list(_JOB_FILE)})]},
    "Kept": _KEPT,
    "KeptWithFiles": {"allOf": [_ref("Kept"), _object({"each": _list(_KEPT_FILE)})]},
    "Arriving": _ARRIVING,
    "State": _STATE,
    "Repository": _object({"repository": _NAME}, closed=True),
    "Changed": _object({"repository": _NAME, "freed": _BYTES}),
    "Error": _object({"error": _TEXT}),
}
_JOB_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{12}$"}}
_HUB_TOKEN = {
    "name": "X-Hub-Token",
    "in": "header",
    "schema": _TEXT,
    "description": "A token of the source, for what not everybody may see. It is not kept on disk.",
}


def _json(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str,
    answers: _Answers,
    *,
    body: _Schema | None = None,
    parameters: list[_Schema] | None = None,
    changes: bool = True,
) -> _Schema:
    told: _Schema = {
        status: {"description": description} | ({} if schema is None else {"content": _json(schema)})
        for status, (description, schema) in answers.items()
    }
    if changes:
        told["401"] = {"description": "It takes the admin token.", "content": _json(_ref("Error"))}
        told["403"] = {"description": "Not from here.", "content": _json(_ref("Error"))}
    operation: _Schema = {"summary": summary, "responses": told}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation | ({"security": [{"admin": []}, {}]} if changes else {})


_NO_JOB: _Answers = {"404": ("There is no such job.", _ref("Error"))}
_BAD: _Answers = {"400": ("What was sent is not usable.", _ref("Error"))}
_CHANGED: _Answers = {"200": ("Done.", _ref("Changed")), **_BAD}
_BEGUN: _Answers = {
    "202": ("A new job.", _ref("Job")),
    "200": ("A job that does this already.", _ref("Job")),
    "429": ("Too many jobs wait.", _ref("Error")),
    **_BAD,
}


def _told_paths() -> _Schema:
    """What only tells."""
    events = {
        "summary": "The state at each change, as server-sent events `state`; with view=page as parts of the page",
        "parameters": [{"name": "view", "in": "query", "schema": {"enum": ["page"]}}],
        "responses": {
            "200": {"description": "Events.", "content": {"text/event-stream": {"schema": _TEXT}}},
            "503": {"description": "Too many watch already.", "content": _json(_ref("Error"))},
        },
    }
    state = {"200": ("The state.", _ref("State"))}
    kept = {"200": ("The largest first.", _list(_ref("KeptWithFiles")))}
    itself = {"200": ("OpenAPI.", {"type": "object"})}
    return {
        "state": {"get": _operation("What arrives, jobs, what is kept, traffic", state, changes=False)},
        "events": {"get": events},
        "kept": {"get": _operation("What is kept, with its files", kept, changes=False)},
        "openapi.json": {"get": _operation("This description", itself, changes=False)},
    }


def _job_paths() -> _Schema:
    every = {"200": ("The newest first.", _list(_ref("Job")))}
    one = {"200": ("The job.", _ref("JobWithFiles")), **_NO_JOB}
    ended: _Answers = {"200": ("It is cancelled.", _ref("Job")), "204": ("It is forgotten.", None), **_NO_JOB}
    taken: _Answers = {"409": ("Another server that shares the cache has it.", _ref("Error"))}
    again = {"202": ("It begins.", _ref("Job")), **taken, **_NO_JOB, **_BAD}
    prefetch, empty = _ref("Prefetch"), {"type": "object"}
    begin = "Fetch a repository before anybody asks for it"
    return {
        "jobs": {
            "get": _operation("All jobs", every, changes=False),
            "post": _operation(begin, _BEGUN, body=prefetch, parameters=[_HUB_TOKEN]),
        },
        "jobs/{id}": {
            "parameters": [_JOB_ID],
            "get": _operation("One job, with its files", one, changes=False),
            "delete": _operation("Cancel a job, or forget one that is over", ended),
        },
        "jobs/{id}/retry": {
            "parameters": [_JOB_ID],
            "post": _operation("Begin a job once more", again, body=empty, parameters=[_HUB_TOKEN]),
        },
    }


def _kept_paths() -> _Schema:
    evicted = {**_CHANGED, "404": ("Nothing of it is kept.", _ref("Error"))}
    told = {
        "pin": ("Keep it whatever happens", _CHANGED),
        "unpin": ("Let it go when room is needed", _CHANGED),
        "evict": ("Remove it", evicted),
        "verify": ("Hash all its files again; wrong ones are removed", _BEGUN),
    }
    return {
        f"kept/{action}": {"post": _operation(summary, answers, body=_ref("Repository"))}
        for action, (summary, answers) in told.items()
    }


def openapi_document() -> dict[str, Any]:
    """The description of all endpoints below /api/asyncfetch/."""
    paths = _told_paths() | _job_paths() | _kept_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "asyncfetch serve --upstream",
            "version": __version__,
            "description": "Jobs, what is kept, and how it goes. Sizes are bytes, times seconds since 1970.",
        },
        "servers": [{"url": "/api/asyncfetch"}],
        "paths": {f"/{path}": item for path, item in paths.items()},
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "The admin token."}},
        },
    }
