"""Breaks of how files beside a checkpoint are chosen, listed and brought."""

from __future__ import annotations

from . import Mutant

_COMPANIONS = "files beside a checkpoint"
_LISTING = "a listing of a repository"

MUTANTS = (
    Mutant(
        "weights-of-other-formats-come-too",
        _COMPANIONS,
        "sources.listing:companions_of",
        "not holds_weights(path)",
        "True",
        ("sources/test_listing.py::test_companions",),
    ),
    Mutant(
        "modules-without-their-weights",
        _COMPANIONS,
        "sources.listing:companions_of",
        "or _is_module(path[len(prefix) :], prefix, paths)",
        "",
        ("sources/test_listing.py::test_companions",),
    ),
    Mutant(
        "a-glob-without-a-file-passes",
        _COMPANIONS,
        "sources.listing:chosen_of",
        "if not any(_matches(path, [glob]) for path in paths):",
        "if not paths:",
        ("sources/test_listing.py::test_nothing_is_called_so",),
    ),
    Mutant(
        "companions-missing-offline-unsaid",
        _COMPANIONS,
        "sources.files:add_companions",
        "if missing:",
        "if not missing:",
        ("api/test_downloads.py::test_offline_what_is_missing_is_said",),
    ),
    Mutant(
        "named-files-missing-offline-unsaid",
        _COMPANIONS,
        "sources.files:_files_at",
        "if request.settings.offline and file.path is None:",
        "if file is None:",
        ("api/test_downloads.py::test_offline_what_is_missing_is_said",),
    ),
    Mutant(
        "small-files-asked-for-twice",
        _COMPANIONS,
        "sources.hub:Hub.target",
        "PREFIX_LIMIT if file.target is None else 1",
        "1",
        ("api/test_downloads.py::test_small_files_take_one_request",),
    ),
    Mutant(
        "first-page-for-the-whole",
        _LISTING,
        "sources.hub:Hub.listing",
        "if following is None:",
        "if following or following is None:",
        ("api/test_downloads.py::test_companions_come_too",),
    ),
    Mutant(
        "pages-in-a-circle",
        _LISTING,
        "sources.hub:Hub.listing",
        "while query not in asked:",
        "while len(asked) < 50 or query not in asked:",
        ("api/test_downloads.py::test_a_listing_in_a_circle",),
    ),
    Mutant(
        "listing-not-kept",
        _LISTING,
        "engine.bookkeeping:record",
        "if located.records is not None:",
        "if located.records is None and located.index is Ellipsis:",
        ("api/test_downloads.py::test_small_files_take_one_request",),
    ),
    Mutant(
        "cached-companion-of-any-size",
        _LISTING,
        "sources.hub_finder:HubPlace._file_of",
        "path.stat().st_size == entry.size",
        "True",
        ("api/test_downloads.py::test_a_cached_companion_that_is_wrong",),
    ),
)
