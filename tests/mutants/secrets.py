"""Breaks of what may be said."""

from __future__ import annotations

from . import Mutant

_ANYTHING = "whatever any test says or leaves"
_MESSAGES = "messages, data and causes of errors"
_LOGS = "log lines"
_REPRS = "reprs of what holds a token or a link"
_FILES = "names and contents of files"

# The tests of the first ones look for no secret themselves: it is the search of every test that finds it.
MUTANTS = (
    Mutant(
        "token-in-a-log-line",
        _ANYTHING,
        "network/transport.py",
        "        self.requests += 1\n",
        '        self.requests += 1\n        __import__("logging").getLogger("asyncfetch").debug("%s", own)\n',
        ("sources/test_hub.py::test_a_small_file",),
    ),
    Mutant(
        "link-in-an-error",
        _ANYTHING,
        "errors.py",
        '    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))',
        "    return urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))",
        ("engine/test_transfer.py::test_link_that_is_always_refused",),
    ),
    Mutant(
        "link-in-an-event",
        _ANYTHING,
        "engine/transfer.py",
        "                    renew = True\n",
        "                    renew = True\n                    self.notify(FileProgress(target.url, 0, 0))\n",
        ("engine/test_transfer.py::test_expired_link_is_renewed",),
    ),
    Mutant(
        "link-in-the-context-of-an-error",
        _ANYTHING,
        "network/ranges.py",
        "    if target.signed and status in (400, 401, 403, 404, 410):\n"
        "        raise LinkExpiredError(status, url=target.url)\n",
        "    if target.signed and status in (400, 401, 403, 404, 410):\n        try:\n"
        "            raise ValueError(target.url)\n        except ValueError as error:\n"
        "            raise LinkExpiredError(status, url=target.url) from error\n",
        ("engine/test_transfer.py::test_expired_link_is_renewed",),
    ),
    Mutant(
        "link-in-a-file",
        _ANYTHING,
        "engine/transfer.py",
        '                identity = file.identity if file.resumable else f"{file.identity}:{time.time_ns()}"',
        '                identity = file.target.url if file.target else ""',
        ("engine/test_transfer.py::test_no_progress_gives_up",),
    ),
    Mutant(
        "whole-urls-in-errors",
        _MESSAGES,
        "errors.py",
        '    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))',
        "    return url",
        ("test_errors.py::test_redact_url", "test_errors.py::test_texts"),
    ),
    Mutant(
        "passwords-in-errors",
        _MESSAGES,
        "errors.py",
        '        host = parts.netloc.rpartition("@")[2]\n',
        "        host = parts.netloc\n",
        ("test_errors.py::test_redact_url",),
    ),
    Mutant(
        "unredacted-network-errors",
        _MESSAGES,
        "errors.py",
        "        self.url = redact_url(url)\n        self.retry_after",
        "        self.url = url\n        self.retry_after",
        ("test_errors.py::test_texts",),
    ),
    Mutant(
        "unredacted-rate-limits",
        _MESSAGES,
        "errors.py",
        "        self.url, self.retry_after = redact_url(url), retry_after",
        "        self.url, self.retry_after = url, retry_after",
        ("test_errors.py::test_texts",),
    ),
    Mutant(
        "impossible-token-shown",
        _MESSAGES,
        "sources/settings.py",
        '        raise SourceError("The token has characters that no HTTP header can carry.")',
        '        raise SourceError(f"The token {text!r} has characters that no HTTP header can carry.")',
        ("sources/test_hub.py::test_impossible_tokens",),
    ),
    Mutant(
        "password-in-the-page-of-a-gated-model",
        _MESSAGES,
        "sources/hub.py",
        'redact_url(f"{self.settings.endpoint}/{self.repo_id}")',
        'f"{self.settings.endpoint}/{self.repo_id}"',
        ("sources/test_hub.py::test_a_password_of_the_endpoint_is_not_shown",),
    ),
    Mutant(
        "queries-in-logs",
        _LOGS,
        "network/wall.py",
        """            text = re.sub(r"\\?[^\\s'\\"]+", "?…", record.getMessage())""",
        "            text = record.getMessage()",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "passwords-in-logs",
        _LOGS,
        "network/wall.py",
        """            text = re.sub(r"//[^\\s'\\"/?#]*@", "//", text)\n""",
        "",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "logs-of-one-family-only",
        _LOGS,
        "network/wall.py",
        "    for family in sorted(_FAMILIES)\n",
        '    for family in ("httpx", "httpcore")\n',
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "logs-of-others-changed",
        _LOGS,
        "network/wall.py",
        "        if _ours.get():\n",
        "        if record:\n",
        ("network/test_transport.py::test_logs_of_others_are_left_alone",),
    ),
    Mutant(
        "cookies-in-logs",
        _LOGS,
        "network/wall.py",
        r"""(r"(?i)(b'set-cookie', b)""",
        r"""(r"(?i)(b'unset-cookie', b)""",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "no-filter-on-the-logs",
        _LOGS,
        "network/transport.py",
        "        redact_logs()\n",
        "",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "token-in-the-repr-of-settings",
        _REPRS,
        "sources/settings.py",
        '        token = "set" if self.token else None\n',
        "        token = self.token\n",
        ("sources/test_hub.py::test_settings_do_not_show_the_token",),
    ),
    Mutant(
        "link-in-the-repr-of-a-target",
        _REPRS,
        "network/ranges.py",
        "    url: str = field(repr=False)\n",
        "    url: str\n",
        ("network/test_ranges.py::test_targets_hide_their_secrets",),
    ),
    Mutant(
        "link-in-the-repr-of-what-was-found",
        _REPRS,
        "sources/hub.py",
        "    link: str | None = field(repr=False)\n",
        "    link: str | None\n",
        ("sources/test_hub.py::test_what_was_found_hides_its_link",),
    ),
    Mutant(
        "headers-in-the-repr-of-a-reply",
        _REPRS,
        "network/transport.py",
        "    headers: Mapping[str, str] = field(repr=False)\n",
        "    headers: Mapping[str, str]\n",
        ("sources/test_hub.py::test_what_was_found_hides_its_link",),
    ),
    Mutant(
        "query-in-the-repr-of-a-source",
        _REPRS,
        "sources/request.py",
        '        return f"UrlSource({str(self)!r})"',
        '        return f"UrlSource({self.folder!r}, {self.file!r}, {self.query!r})"',
        ("sources/test_source.py::test_what_is_shown_of_a_url",),
    ),
    Mutant(
        "query-in-the-text-of-a-source",
        _REPRS,
        "sources/request.py",
        '        return redact_url(self.folder + quote(self.file or ""))',
        '        return f"{self.folder}{self.file}?{self.query}"',
        ("sources/test_source.py::test_what_is_shown_of_a_url",),
    ),
    Mutant(
        "credentials-in-the-name-of-a-repository",
        _FILES,
        "storage/cache.py",
        "    shown = redact_url(url)\n",
        "    shown = url\n",
        ("storage/test_cache.py::test_repositories_of_urls",),
    ),
    Mutant(
        "link-in-the-journal",
        _FILES,
        "sources/web_finder.py",
        """        identity = f"{redact_url(self.web.url(name)).partition('?')[0]}\\n""",
        """        identity = f"{self.web.url(name)}\\n""",
        ("engine/test_faults.py::test_journal_of_a_url_has_no_secret",),
    ),
)
