"""The page of a server before another Hub, for people: HTML without a build step. Pure, but for its script and style.

It holds what there is at the moment, so it reads without JavaScript. With it, its script puts in the parts that the
server words anew (live.py), and keeps what has the focus. All names come from others, so all text is escaped, and the
policy lets run nothing but the script and the style that are in the page, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..folders.layout import qualified
from ..text import size_text, span_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["HEADERS", "page_parts", "service_page"]

_SCRIPT = (files(__package__) / "service_page.js").read_text(encoding="utf-8")
_STYLE = (files(__package__) / "service_page.css").read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashed(_SCRIPT)}; style-src {_hashed(_STYLE)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_WORDS = {  # of a file on its way, and of a job
    "queued": "waits for its turn",
    "not_started": "begins",
    "downloading": "arrives",
    "backoff": "tried again",
    "waiting": "waits",
    "verifying": "is verified",
    "verified": "verified",
    "unchecked": "done",
    "cached": "here",
    "running": "runs",
    "needs_token": "waits for a token",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
_SOURCE = {
    "well": ("good", "answers"),
    "away": ("bad", "does not answer"),
    "limiting": ("bad", "limits the rate of requests"),
}


def service_page(
    document: Mapping[str, Any],
    *,
    origin: str,
    base: str,
    admin: str,
    own: Mapping[str, Sequence[str]],
    every: bool = False,
) -> str:
    """The page. `base` is where the API is, `own` what is served from a folder, by kind; `admin` who may change things.

    That is "yes" for who asks, "token" for who sends the admin token, and "no" for nobody who asks from there.
    `every`: the document has every repository that is kept. These may be many, so they stay as they were.
    """
    parts = page_parts(document, full=admin == "yes")
    sections = {name: _section(name, html) for name, html in parts.items()}
    if admin != "no":
        sections["jobs"] = _section("prefetch", _prefetch_form(token=admin == "token")) + sections["jobs"]
    if any(own.values()):
        sections["own"] = _section("own", _own(origin, own))
    title = escape(str(document["source"]["url"]).partition("//")[2])
    stays = ' data-stays="kept"' if every else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title} by asyncfetch</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n'
        f'<body data-base="{escape(base)}"{stays}>\n<header>\n<h1>asyncfetch</h1>\n'
        '<button id="pause" type="button" class="scripted" aria-pressed="false">Pause updates</button>\n</header>\n'
        "<noscript><p>This is how it is now. Load the page again to see how it goes on.</p></noscript>\n"
        f"<main>\n{''.join(sections.values())}{_section('clients', _clients(origin))}</main>\n"
        '<p id="said" role="status" aria-live="polite"></p>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def page_parts(document: Mapping[str, Any], *, full: bool) -> dict[str, str]:
    """The parts that change, by their ids. `full`: for who may change something, who gets buttons."""
    return {
        "overview": _overview(document),
        "trouble": _trouble(document),
        "arriving": _arriving(document),
        "jobs": _jobs(document, full=full),
        "kept": _kept(document, full=full),
    }


def _section(name: str, html: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title">{html}</section>\n'


def _title(name: str, text: str) -> str:
    return f'<h2 id="{name}-title" tabindex="-1">{text}</h2>'


# -- the parts that change -----------------------------------------------------------------------


def _overview(document: Mapping[str, Any]) -> str:
    source, traffic, room = document["source"], document["traffic"], document["room"]
    mark, word = _SOURCE[source["state"]]
    sizes = [size_text(size).replace(" ", "&nbsp;") for size in (room["used"], room["max_size"]) if size is not None]
    used = " of ".join(sizes)
    limit = source["rate_limit"]
    left = f", {limit['remaining']:,} requests left for {span_text(limit['seconds'])}" if limit else ""
    rate = sum(one["rate"] or 0 for one in document["arriving"])
    facts = [
        ("Saved", size_text(traffic["saved"]), "not fetched again"),
        ("Handed out", size_text(traffic["served"]), "to clients"),
        ("Fetched", size_text(traffic["fetched"]), f"by {traffic['asked']:,} requests"),
        ("Kept", used, f"in {_counted(document['kept_in_all'], 'repository')}"),
        ("Arriving", f"{size_text(rate)}/s", _counted(document["arriving_in_all"], "file")),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></div>" for name, value, note in facts)
    return (
        f'{_title("overview", escape(source["url"]))}<p><span class="mark {mark}">{word}</span>{left}</p>'
        f"<dl>{cells}</dl>"
    )


def _trouble(document: Mapping[str, Any]) -> str:
    items = []
    source = document["source"]
    if source["state"] != "well":
        after = source["retry_after"]
        wait = f" It asks to wait {span_text(after)}." if after else ""
        items.append(
            f"<li><strong>The source {_SOURCE[source['state']][1]}</strong> ({escape(source['reason'])}).{wait} What "
            "is kept is served all the same, and the source is asked again by itself.</li>"
        )
    for one in document["failures"]:
        where = f"{escape(one['repository'])}/{escape(one['file'])}"
        items.append(f"<li><strong>{where}</strong> {_when(one['at'])}: {_said(one)}</li>")
    return f'{_title("trouble", "Trouble")}<ul class="plain">{"".join(items)}</ul>' if items else ""


def _arriving(document: Mapping[str, Any]) -> str:
    shown = [_arriving_item(one) for one in document["arriving"]]
    if hidden := document["arriving_in_all"] - len(shown):
        shown.append(f"<li>{_counted(hidden, 'more file')}</li>")
    list_ = f'<ul class="plain">{"".join(shown)}</ul>' if shown else "<p>Nothing at the moment.</p>"
    return f"{_title('arriving', 'Arriving')}{list_}"


def _arriving_item(one: Mapping[str, Any]) -> str:
    key, name = _key(one["repository"], one["file"]), f"{one['repository']}/{one['file']}"
    told = [_WORDS[one["state"]], f"{size_text(one['received'])} of {size_text(one['size'])}"]
    if one["rate"]:
        told.append(f"{size_text(one['rate'])}/s")
    if one["seconds_left"] is not None:
        told.append(f"{span_text(one['seconds_left'])} left")
    told += [_counted(one[what], word) for what, word in (("readers", "client"), ("retries", "retry")) if one[what]]
    if one["restarts"]:
        told.append("fetched again, as its hash was wrong")
    reason = f'<p class="hold">{_held(one)}</p>' if one["reason"] else ""
    bar = _bar(f"f-{key}", f"How much of {name} is here", one["received"], one["size"])
    return f'<li id="a-{key}"><p class="name">{escape(name)}</p>{bar}<p class="told">{", ".join(told)}</p>{reason}</li>'


def _held(one: Mapping[str, Any]) -> str:
    wait = f" Again in {span_text(one['retry_in'])}." if one["retry_in"] else ""
    return f"{_short(one['reason'].rstrip('.'))}.{wait}"


def _jobs(document: Mapping[str, Any], *, full: bool) -> str:
    shown = [_job(one, full=full) for one in document["jobs"]]
    if hidden := document["jobs_in_all"] - len(shown):
        shown.append(f"<li>{_counted(hidden, 'more job')}</li>")
    list_ = f'<ul class="plain">{"".join(shown)}</ul>' if shown else "<p>There are none.</p>"
    return f"{_title('jobs', 'Jobs')}{list_}"


def _job(one: Mapping[str, Any], *, full: bool) -> str:
    state, repository = one["state"], one["repository"]
    name = f"{repository}@{one['revision']}" if one["task"] == "prefetch" else f"Verify {repository}"
    told = [_WORDS[state]]
    if one["files"]:
        told.append(f"{one['files_done']:,} of {_counted(one['files'], 'file')}")
        told.append(f"{size_text(one['received'])} of {size_text(one['size'])}")
    if one["rate"]:
        told.append(f"{size_text(one['rate'])}/s")
    if one["ended"]:
        told.append(_when(one["ended"]))
    globs = [f"only {glob}" for glob in one["include"]] + [f"without {glob}" for glob in one["exclude"]]
    told += [escape(glob) for glob in globs]
    running = state in ("queued", "running")
    bar = _bar(f"b-{one['id']}", f"How much of {name} is here", one["received"], one["size"]) if running else ""
    reason = f'<p class="hold">{_short(one["reason"])}</p>' if one["reason"] else ""
    return (
        f'<li id="j-{one["id"]}" data-state="{_WORDS[state]}" data-name="{escape(name)}"><p class="name">{escape(name)}'
        f'</p>{bar}<p class="told">{", ".join(told)}</p>{reason}{_job_error(one)}'
        f"{_job_buttons(one, name) if full else ''}</li>"
    )


def _job_error(one: Mapping[str, Any]) -> str:
    if one["error"] is None:
        return ""
    hint = one["error"]["hint"]
    if one["state"] == "needs_token":
        hint = "A token is not kept over a restart: put one into the form above, and retry."
    return f'<p class="hold">{_said({**one["error"], "hint": hint})}</p>'


def _said(error: Mapping[str, str]) -> str:
    """An error and what to do about it."""
    return _short(f"{error['message']} {error['hint']}".strip())


def _short(text: str) -> str:
    """A text as HTML; of hashes the beginning, which tells them apart."""
    return escape(re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", text))


def _job_buttons(one: Mapping[str, Any], name: str) -> str:
    path, buttons = f"jobs/{one['id']}", []
    if one["state"] in ("failed", "cancelled", "needs_token"):
        buttons.append(_button("Retry", name, f"r-{one['id']}", "POST", f"{path}/retry", {}))
    over = one["state"] in ("done", "failed", "cancelled")
    # One button with one id, so that the focus stays when a job ends.
    buttons.append(_button("Remove from list" if over else "Cancel", name, f"d-{one['id']}", "DELETE", path))
    return f'<p class="buttons scripted">{"".join(buttons)}</p>'


def _kept(document: Mapping[str, Any], *, full: bool) -> str:
    rows = "".join(_kept_row(one, full=full) for one in document["kept"])
    more = _more_kept(document)
    if not rows:
        return f"{_title('kept', 'Kept')}{more or '<p>Nothing yet.</p>'}"
    heads = ["Repository", "Size", "Files", "Last read", "Reads", *(["Change"] if full else [])]
    head = "".join(f'<th scope="col"{_aligned(name)}>{name}</th>' for name in heads)
    return f"{_title('kept', 'Kept')}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _more_kept(document: Mapping[str, Any]) -> str:
    """How many more repositories there are, and where those are that may be named."""
    named = document["kept_named"]
    told = []
    if hidden := named - len(document["kept"]):
        told.append(f'<a href="?kept=all">{_counted(hidden, "smaller repository")}</a>')
    if unnamed := document["kept_in_all"] - named:
        told.append(f"{_counted(unnamed, 'repository')} not shown to everybody")
    return f"<p>And {', and '.join(told)}.</p>" if told else ""


def _aligned(name: str) -> str:
    if name == "Change":
        return ' class="buttons scripted"'
    return ' class="number"' if name in ("Size", "Files", "Reads") else ""


def _kept_row(one: Mapping[str, Any], *, full: bool) -> str:
    name, key = one["repository"], _key(one["repository"])
    pinned = ' <span class="mark">pinned</span>' if one["pinned"] else ""
    cells = [
        ("Size", size_text(one["size"])),
        ("Files", f"{one['files']:,}"),
        ("Last read", _when(one["last_read"]) if one["last_read"] else "never"),
        ("Reads", f"{one['hits']:,}"),
    ]
    told = "".join(f'<td data-head="{head}"{_aligned(head)}>{value}</td>' for head, value in cells)
    buttons = f'<td class="buttons scripted">{_kept_buttons(one, name, key)}</td>' if full else ""
    return f'<tr id="k-{key}"><th scope="row">{escape(name)}{pinned}</th>{told}{buttons}</tr>'


def _kept_buttons(one: Mapping[str, Any], name: str, key: str) -> str:
    body = {"repository": name}
    pin, said = ("unpin", "Unpin") if one["pinned"] else ("pin", "Pin")
    buttons = [
        _button(said, name, f"p-{key}", "POST", f"kept/{pin}", body),
        _button("Verify", name, f"v-{key}", "POST", "kept/verify", body),
    ]
    if not one["pinned"]:
        question = f"Remove {name} from this server? It is fetched again when it is asked for."
        buttons.append(_button("Evict", name, f"e-{key}", "POST", "kept/evict", body, question))
    return "".join(buttons)


def _button(
    word: str, name: str, key: str, method: str, path: str, body: Mapping[str, Any] | None = None, ask: str = ""
) -> str:
    """A button that the script makes a request of. What it is about is told to who does not see where it is."""
    sent = "" if body is None else f' data-body="{escape(json.dumps(body))}"'
    asked = f' data-ask="{escape(ask)}"' if ask else ""
    return (
        f'<button type="button" id="{key}" data-method="{method}" data-path="{path}"{sent}{asked} '
        f'data-said="{escape(f"{word}: {name}")}">{word}<span class="unseen"> {escape(name)}</span></button>'
    )


def _bar(key: str, label: str, part: int, whole: int) -> str:
    share = f"{part * 100 // whole if whole else 0} %"
    value = f'value="{min(part, whole)}" max="{whole}"' if whole else 'value="0" max="1"'
    return f'<progress id="{key}" {value} aria-label="{escape(label)}">{share}</progress>'


def _when(at: float) -> str:
    """A moment, as how long ago it was."""
    ago = max(time.time() - at, 0.0)
    exact = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    # In whole minutes, so that a page where nothing happens stays as it is.
    return f'<time datetime="{exact}">{"just now" if ago < 60 else f"{span_text(ago // 60 * 60)} ago"}</time>'


def _counted(count: int, one: str) -> str:
    plural = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{count:,} {one if count == 1 else plural}"


def _key(*parts: str) -> str:
    """What stands for names in the id of an element."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


# -- what stays ----------------------------------------------------------------------------------


def _field(name: str, label: str, note: str, attributes: str) -> str:
    return (
        f'<p class="field"><label for="{name}">{label}</label><input id="{name}" name="{name}" {attributes} '
        f'aria-describedby="{name}-note"><small id="{name}-note">{note}</small></p>'
    )


def _prefetch_form(*, token: bool) -> str:
    """The form that begins a job; with `token` also the field for the admin token, which is kept in the page alone."""
    plain = 'autocomplete="off" autocapitalize="off" spellcheck="false"'
    hidden = 'type="password" autocomplete="off"'
    fields = [
        _field("source", "Repository", "org/model, datasets/org/name, or its address", f"required {plain}"),
        _field("revision", "Revision", "branch, tag or commit; main if empty", plain),
        _field("include", "Only", "globs such as *.json, separated by spaces", plain),
        _field("exclude", "Without", "globs, separated by spaces", plain),
        _field("hub-token", "Token of the source", "for what not everybody may see; not kept on disk", hidden),
    ]
    unlock = ""
    if token:
        field = _field("admin-token", "Admin token", "kept in this page until it is closed", hidden)
        unlock = (
            f'<form id="unlock" class="scripted">{field}<p><button>Show all, and let me change it</button></p></form>'
        )
    return (
        f"{_title('prefetch', 'Fetch in advance')}"
        "<noscript><p>Without JavaScript: <code>asyncfetch prefetch org/model --server URL</code></p></noscript>"
        f'{unlock}<form id="start" class="scripted">{"".join(fields)}<p><button>Fetch</button></p></form>'
    )


def _own(origin: str, own: Mapping[str, Sequence[str]]) -> str:
    """What is served from a folder beside the source, instead of what the source has under the same names."""
    names = [qualified(kind, name) for kind, found in own.items() for name in found]
    links = "".join(f'<li><a href="{escape(origin)}/{quote(name)}">{escape(name)}</a></li>' for name in names)
    return f"{_title('own', 'From a folder of this server')}<ul>{links}</ul>"


def _clients(origin: str) -> str:
    where, quoted = escape(origin), escape(json.dumps(origin))
    lines = [
        ("Any client of the Hub, in a shell", f"export HF_ENDPOINT={where}\nhf download org/model"),
        (
            "In Python, before the first import",
            f'import os\nos.environ["HF_ENDPOINT"] = {quoted}\nfrom transformers import AutoModel',
        ),
        ("In a container", f"docker run -e HF_ENDPOINT={where} ..."),
        ("Fetch in advance", f"asyncfetch prefetch org/model --server {where}"),
    ]
    told = "".join(f'<h3>{name}</h3><pre tabindex="0"><code>{code}</code></pre>' for name, code in lines)
    return f"{_title('clients', 'For clients')}{told}"
