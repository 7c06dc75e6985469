"""Breaks of what may be said."""

from __future__ import annotations

from . import Mutant

_MESSAGES = "messages, data and causes of errors"
_LOGS = "log lines"
_REPRS = "reprs of what holds a token or a link"
_FILES = "names and contents of files"

MUTANTS = (
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
        "hub.py",
        '        raise SourceError("The token has characters that no HTTP header can carry.")',
        '        raise SourceError(f"The token {text!r} has characters that no HTTP header can carry.")',
        ("test_hub.py::test_impossible_tokens",),
    ),
    Mutant(
        "urls-in-logs",
        _LOGS,
        "wall.py",
        """        text = re.sub(r"\\?[^\\s'\\"]+", "?…", record.getMessage())""",
        "        text = record.getMessage()",
        ("test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "cookies-in-logs",
        _LOGS,
        "wall.py",
        r"""(r"(?i)(b'set-cookie', b)""",
        r"""(r"(?i)(b'unset-cookie', b)""",
        ("test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "no-filter-on-the-logs",
        _LOGS,
        "transport.py",
        "        redact_logs()\n",
        "",
        ("test_transport.py::test_logs_hide_signatures",),
    ),
    Mutant(
        "token-in-the-repr-of-settings",
        _REPRS,
        "hub.py",
        '        token = "set" if self.token else None\n',
        "        token = self.token\n",
        ("test_hub.py::test_settings_do_not_show_the_token",),
    ),
    Mutant(
        "link-in-the-repr-of-a-target",
        _REPRS,
        "ranges.py",
        "    url: str = field(repr=False)\n",
        "    url: str\n",
        ("test_ranges.py::test_targets_hide_their_secrets",),
    ),
    Mutant(
        "query-in-the-text-of-a-source",
        _REPRS,
        "source.py",
        '        return redact_url(self.folder + quote(self.file or ""))',
        '        return f"{self.folder}{self.file}?{self.query}"',
        ("test_source.py::test_what_is_shown_of_a_url",),
    ),
    Mutant(
        "credentials-in-the-name-of-a-repository",
        _FILES,
        "cache.py",
        "    shown = redact_url(url)\n",
        "    shown = url\n",
        ("test_cache.py::test_repositories_of_urls",),
    ),
    Mutant(
        "link-in-the-journal",
        _FILES,
        "web_finder.py",
        """        identity = f"{redact_url(self.web.url(name)).partition('?')[0]}\\n""",
        """        identity = f"{self.web.url(name)}\\n""",
        ("test_faults.py::test_journal_of_a_url_has_no_secret",),
    ),
)
