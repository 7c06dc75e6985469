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
        "network.transport:Transport._send",
        "self.requests += 1",
        'self.requests += 1\n__import__("logging").getLogger("asyncfetch").debug("%s", own)',
        ("sources/test_hub.py::test_a_small_file",),
    ),
    Mutant(
        "link-in-an-error",
        _ANYTHING,
        "words:redact_url",
        'return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))',
        "return urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))",
        ("engine/test_transfer.py::test_link_that_is_always_refused",),
    ),
    Mutant(
        "link-in-an-event",
        _ANYTHING,
        "network.ranges:receive",
        "whereabouts.failed(target, error, budget)",
        "whereabouts.failed(target, error, budget)\ntransport.notify(target.url)",
        ("engine/test_transfer.py::test_expired_link_is_renewed",),
    ),
    Mutant(
        "link-in-the-context-of-an-error",
        _ANYTHING,
        "network.ranges:check_status",
        "raise LinkExpiredError(status, url=target.url)",
        (
            "try:\n"
            "    raise ValueError(target.url)\n"
            "except ValueError as error:\n"
            "    raise LinkExpiredError(status, url=target.url) from error"
        ),
        ("engine/test_transfer.py::test_expired_link_is_renewed",),
    ),
    Mutant(
        "link-in-a-file",
        _ANYTHING,
        "engine.beginning:stored_partial",
        'identity = file.journal_identity if file.resumable else f"{file.identity}:{time.time_ns()}"',
        'identity = file.target.url if file.target else ""',
        ("engine/test_transfer.py::test_no_progress_gives_up",),
    ),
    Mutant(
        "whole-urls-in-errors",
        _MESSAGES,
        "words:redact_url",
        'return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))',
        "return url",
        ("test_errors.py::test_redact_url", "test_errors.py::test_texts"),
    ),
    Mutant(
        "passwords-in-errors",
        _MESSAGES,
        "words:redact_url",
        'host = parts.netloc.rpartition("@")[2]',
        "host = parts.netloc",
        ("test_errors.py::test_redact_url",),
    ),
    Mutant(
        "parsers-quote-what-they-cannot-read",
        _MESSAGES,
        "network.wall:raise_translated",
        "_cut_quotations(error)",
        "pass",
        (
            "network/test_wall.py::test_answers_that_are_no_http",
            "network/test_wall.py::test_what_is_left_of_their_words",
        ),
    ),
    Mutant(
        "quotations-in-log-lines",
        _MESSAGES,
        "network.wall:_Redact.filter",
        '_QUOTATION.sub("", text) if "ProtocolError(" in text else text',
        "text",
        ("network/test_wall.py::test_answers_that_are_no_http",),
    ),
    Mutant(
        "a-line-end-is-part-of-a-secret",
        _MESSAGES,
        "sources.store_env:_secret",
        'cleaned(settings.get(name), f"What {name} is set to{where}")',
        "settings.get(name)",
        ("sources/test_store_env.py::test_secrets_as_files_and_shells_leave_them",),
    ),
    Mutant(
        "unredacted-network-errors",
        _MESSAGES,
        "errors:NetworkError.__init__",
        "redact_url(url)",
        "url",
        ("test_errors.py::test_texts",),
    ),
    Mutant(
        "unredacted-rate-limits",
        _MESSAGES,
        "errors:RateLimitedError.__init__",
        "redact_url(url)",
        "url",
        ("test_errors.py::test_texts",),
    ),
    Mutant(
        "impossible-token-shown",
        _MESSAGES,
        "sources.settings:cleaned",
        'raise SourceError(f"{what} has characters that no HTTP header can carry.")',
        'raise SourceError(f"{what} {text!r} has characters that no HTTP header can carry.")',
        ("sources/test_hub.py::test_impossible_tokens",),
    ),
    Mutant(
        "password-in-the-page-of-a-gated-model",
        _MESSAGES,
        "sources.hub:Hub._raise_for",
        'redact_url(f"{self.settings.endpoint}/{self.name}")',
        'f"{self.settings.endpoint}/{self.name}"',
        ("sources/test_hub.py::test_a_password_of_the_endpoint_is_not_shown",),
    ),
    Mutant(
        "queries-in-logs",
        _LOGS,
        "network.wall:_Redact.filter",
        r"""text = re.sub(r"\?[^\s'\"]+", "?…", record.getMessage())""",
        "text = record.getMessage()",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "passwords-in-logs",
        _LOGS,
        "network.wall:_Redact.filter",
        r"""text = re.sub(r"//[^\s'\"/?#]*@", "//", text)""",
        "",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "logs-of-one-family-only",
        _LOGS,
        "network.wall",
        "for family in sorted(_FAMILIES)",
        'for family in ("httpx", "httpcore")',
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "logs-of-others-changed",
        _LOGS,
        "network.wall:_Redact.filter",
        "if _ours.get():",
        "if record:",
        ("network/test_transport.py::test_logs_of_others_are_left_alone",),
    ),
    Mutant(
        "cookies-in-logs",
        _LOGS,
        "network.wall:_Redact.filter",
        r'''(r"(?i)(b'set-cookie', b)('[^']*'|\"[^\"]*\")"''',
        r'''(r"(?i)(b'unset-cookie', b)('[^']*'|\"[^\"]*\")"''',
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "no-filter-on-the-logs",
        _LOGS,
        "network.transport:Transport.__aenter__",
        "redact_logs()",
        "",
        ("network/test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "token-in-the-repr-of-settings",
        _REPRS,
        "sources.settings:Settings.__repr__",
        'token = "set" if self.token else None',
        "token = self.token",
        ("sources/test_hub.py::test_settings_do_not_show_the_token",),
    ),
    Mutant(
        "link-in-the-repr-of-a-target",
        _REPRS,
        "network.ranges:Target",
        "url: str = field(repr=False)",
        "url: str",
        ("network/test_ranges.py::test_targets_hide_their_secrets",),
    ),
    Mutant(
        "link-in-the-repr-of-what-was-found",
        _REPRS,
        "sources.hub:HubFile",
        "link: str | None = field(repr=False)",
        "link: str | None",
        ("sources/test_hub.py::test_what_was_found_hides_its_link",),
    ),
    Mutant(
        "headers-in-the-repr-of-a-reply",
        _REPRS,
        "network.transport:Reply",
        "headers: Mapping[str, str] = field(repr=False)",
        "headers: Mapping[str, str]",
        ("sources/test_hub.py::test_what_was_found_hides_its_link",),
    ),
    Mutant(
        "query-in-the-repr-of-a-source",
        _REPRS,
        "sources.request:UrlSource.__repr__",
        'return f"UrlSource({str(self)!r})"',
        'return f"UrlSource({self.folder!r}, {self.file!r}, {self.query!r})"',
        ("sources/test_source.py::test_what_is_shown_of_a_url",),
    ),
    Mutant(
        "query-in-the-text-of-a-source",
        _REPRS,
        "sources.request:UrlSource.__str__",
        'return redact_url(self.folder + quote(self.file or ""))',
        'return f"{self.folder}{self.file}?{self.query}"',
        ("sources/test_source.py::test_what_is_shown_of_a_url",),
    ),
    Mutant(
        "credentials-in-the-name-of-a-repository",
        _FILES,
        "storage.roots:url_repo_id",
        "shown = redact_url(url)",
        "shown = url",
        ("storage/test_cache.py::test_repositories_of_urls",),
    ),
    Mutant(
        "link-in-the-journal",
        _FILES,
        "sources.web_finder:_file_of",
        r'''identity = f"{redact_url(url).partition('?')[0]}\n{size}\n{version}"''',
        r'identity = f"{url}\n{size}\n{version}"',
        ("engine/test_faults.py::test_journal_of_a_url_has_no_secret",),
    ),
)
