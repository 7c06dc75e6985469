"""Breaks of what a server of models promises to its clients."""

from __future__ import annotations

from . import Mutant

_LINKS = "links in a folder that is served"
_HASHING = "files that take long to be hashed"
_KEPT = "hashes that were kept over a restart"
_CHANGE = "a served file that changes"
_CACHE = "a hub cache that is served"
_PROXY = "a proxy before the server"
_REFUSED = "requests that are refused"
_CONDITIONS = "who has a file already, or a part of another one"
_BROWSER = "what others put into a repository or a request, in a browser or a log"

MUTANTS = (
    Mutant(
        "serves-what-links-lead-to",
        _LINKS,
        "server.folders.layout:Layout.leads_out",
        "self.boundary is None or Path(real).is_relative_to(self.boundary)",
        "self.boundary is None or Path(real).is_absolute()",
        ("server/folders/test_layout.py::test_links_of_models",),
    ),
    Mutant(
        "links-go-round-in-circles",
        _LINKS,
        "server.folders.walk:_Walk.under",
        "for passed in (*left, folder)",
        "for passed in (folder,)",
        ("server/folders/test_layout.py::test_links_of_models",),
    ),
    Mutant(
        "waits-for-the-hash-to-the-end",
        _HASHING,
        "server.folders.catalog:Catalog.repository",
        "anyio.move_on_after(PATIENCE)",
        "anyio.move_on_after(PATIENCE * 1000)",
        ("server/protocol/test_surroundings.py::test_an_answer_while_files_are_hashed",),
    ),
    Mutant(
        "who-asks-waits-for-all-others",
        _HASHING,
        "server.folders.hashing:Hashing.settle",
        "self.want(files, first=True)",
        "self.want(files)",
        ("server/folders/test_catalog.py::test_who_asks_comes_first",),
    ),
    Mutant(
        "unreadable-file-ends-the-server",
        _HASHING,
        "server.folders.hashes:hash_file",
        "except OSError as error:",
        "except EOFError as error:",
        ("server/folders/test_catalog.py::test_a_file_that_cannot_be_read",),
    ),
    Mutant(
        "what-cannot-be-hashed-ends-the-server",
        _HASHING,
        "server.folders.hashing:Hashing._worker",
        "except Exception as error:",
        "except EOFError as error:",
        ("server/test_background.py::test_a_file_that_cannot_be_hashed",),
    ),
    Mutant(
        "kept-hash-of-another-state",
        _KEPT,
        "server.folders.hashes:Hashes.lookup",
        "kept.state != _state_of(listed)",
        "kept.state[:1] != _state_of(listed)[:1]",
        ("server/folders/test_catalog.py::test_hashed_once",),
    ),
    Mutant(
        "kept-hashes-grow-for-ever",
        _KEPT,
        "server.folders.hashes:Hashes._read",
        "2 * len(self._known) + 1000",
        "2 * len(self._known) + 1000000",
        ("server/folders/test_catalog.py::test_what_is_kept_does_not_grow",),
    ),
    Mutant(
        "changed-file-under-its-old-hash",
        _CHANGE,
        "server.folders.catalog:Catalog.peek",
        "if file is not None and not is_as_listed(file.listed):\n    return None",
        "pass",
        ("server/folders/test_catalog.py::test_a_change_is_seen_at_once",),
    ),
    Mutant(
        "new-files-not-seen",
        _CHANGE,
        "server.folders.layout:unchanged",
        "state is not None and _state(folder) == state",
        "state is None or bool(folder)",
        ("server/folders/test_catalog.py::test_a_change_is_seen_at_once",),
    ),
    Mutant(
        "a-walk-for-each-who-asks",
        _CHANGE,
        "server.folders.catalog:Catalog._look_once",
        "self.peek(place, revision, path) or self._look(place, revision)",
        "self._look(place, revision)",
        ("server/folders/test_catalog.py::test_one_walk_for_many",),
    ),
    Mutant(
        "changed-in-a-burst-is-an-error",
        _CHANGE,
        "server.served.hub:Hub._about_repository",
        "except ChangedError:\n    pass",
        "except EOFError:\n    pass",
        ("server/served/test_server.py::test_a_burst_of_requests",),
    ),
    Mutant(
        "damaged-blob-is-served",
        _CACHE,
        "server.folders.catalog:Catalog.is_damaged",
        "not in (None, file.listed.promised)",
        "is None",
        ("server/protocol/test_protocol.py::test_a_damaged_file_is_not_served",),
    ),
    Mutant(
        "what-was-not-downloaded-does-not-exist",
        _CACHE,
        "server.served.hub:Hub._absent",
        "known=there is False",
        "known=True",
        ("server/protocol/test_protocol.py::test_what_a_cache_does_not_hold",),
    ),
    Mutant(
        "links-lead-past-the-proxy",
        _PROXY,
        "server.served.hub:Hub._origin",
        "self.public_url or",
        "",
        ("server/protocol/test_surroundings.py::test_links_behind_a_proxy",),
    ),
    Mutant(
        "every-proxy-is-believed",
        _PROXY,
        "server.server:_config",
        "forwarded_allow_ips=transport.trusted_proxies",
        'forwarded_allow_ips="*"',
        ("server/protocol/test_surroundings.py::test_links_behind_a_proxy",),
    ),
    Mutant(
        "lists-without-the-token",
        _REFUSED,
        "server.served.hub:Hub._listing",
        "if refusal := self.gate.refusal(request):\n    return refusal",
        "pass",
        ("server/protocol/test_protocol.py::test_listings_need_the_token",),
    ),
    Mutant(
        "huge-ranges-are-nonsense",
        _REFUSED,
        "server.protocol.wire:parse_range",
        'digits if len(digits) <= _DIGITS else "9" * _DIGITS',
        'digits if len(digits) <= _DIGITS else ""',
        ("server/protocol/test_wire.py::test_ranges_without_bytes",),
    ),
    Mutant(
        "who-has-a-file-is-sent-it-again",
        _CONDITIONS,
        "server.protocol.wire:precondition",
        'if_none_match.strip() == "*" or etag in [found for _, found in _ETAG.findall(if_none_match)]',
        'if_none_match.strip() == "*"',
        (
            "server/protocol/test_wire.py::test_preconditions",
            "server/served/test_server.py::test_who_has_a_file_is_told_so",
        ),
    ),
    Mutant(
        "parts-of-another-file-are-sent",
        _CONDITIONS,
        "server.protocol.body:Part.asked",
        "if status := precondition(if_match, if_none_match, etag):",
        'if status := precondition("", if_none_match, etag):',
        ("server/served/test_server.py::test_who_has_a_file_is_told_so",),
    ),
    Mutant(
        "a-weak-etag-is-as-good",
        _CONDITIONS,
        "server.protocol.wire:precondition",
        '("", etag) not in _ETAG.findall(if_match)',
        "etag not in if_match",
        ("server/protocol/test_wire.py::test_preconditions",),
    ),
    Mutant(
        "html-of-a-repository-runs",
        _BROWSER,
        "server.protocol.body:content_type",
        "if suffix in _TEXT or",
        'if suffix == ".html":\n    return "text/html"\nif suffix in _TEXT or',
        ("server/protocol/test_protocol.py::test_content_types",),
    ),
    Mutant(
        "host-of-a-request-runs",
        _BROWSER,
        "server.served.page:home_page",
        "origin = escape(origin)",
        "origin = origin + ''",
        ("server/protocol/test_protocol.py::test_a_page_shows_no_code",),
    ),
    Mutant(
        "queries-in-the-log",
        _BROWSER,
        "server.protocol.access_log:shown_target",
        "[pair for pair in pairs if pair[0] in _SHOWN]",
        "pairs",
        ("server/protocol/test_surroundings.py::test_what_is_shown_of_a_query",),
    ),
)
