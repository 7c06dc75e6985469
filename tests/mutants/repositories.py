"""Breaks of how files beside a checkpoint are chosen, listed and brought."""

from __future__ import annotations

from . import Mutant

_COMPANIONS = "files beside a checkpoint"
_LISTING = "a listing of a repository"
_FOLDER = "a folder that a download fills"
_STAYS = "api/test_local_dir.py::test_what_the_user_changed_stays"

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
        "sources.hub_finder:HubPlace.target",
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
    Mutant(
        "changed-files-overwritten",
        _FOLDER,
        "api.placing:Placing._refuse",
        "if changed and not self.overwrite:",
        "if changed and self.overwrite is None:",
        (_STAYS,),
    ),
    Mutant(
        "dates-alone-tell",
        _FOLDER,
        "storage.folders:_touched",
        "max(status.st_mtime, status.st_ctime)",
        "status.st_mtime",
        (_STAYS,),
    ),
    Mutant(
        "records-outlast-edits",
        _FOLDER,
        "storage.folders:LocalFolder.standing",
        "if digests[checksum.algorithm] == checksum.hex:",
        "if digests[checksum.algorithm]:",
        (_STAYS,),
    ),
    Mutant(
        "edits-meanwhile-overwritten",
        _FOLDER,
        "api.placing:Placing.fill",
        "if self._states[name] != self.folder.state(name)",
        "if name not in self._states",
        ("api/test_local_dir.py::test_edited_while_it_is_fetched",),
    ),
    Mutant(
        "links-out-followed",
        _FOLDER,
        "storage.folders:LocalFolder._holds",
        "os.path.commonpath([home, os.path.realpath(path)]) == home",
        "bool(home)",
        ("api/test_local_dir.py::test_links_that_lead_out", "api/test_local_dir.py::test_a_file_that_is_a_link"),
    ),
    Mutant(
        "case-counts",
        _FOLDER,
        "storage.folders:refuse_collisions",
        'unicodedata.normalize("NFC", part).casefold()',
        "part",
        ("api/test_local_dir.py::test_names_that_cannot_be",),
    ),
    Mutant(
        "folder-linked-to-the-cache",
        _FOLDER,
        "api.placing:Placing.fill",
        "link=own",
        "link=True",
        ("api/test_local_dir.py::test_the_tree_is_there",),
    ),
    Mutant(
        "folder-fetched-twice",
        _FOLDER,
        "api.placing:Placing.look",
        "if file.path is None and",
        "if file.path and",
        (
            "api/test_local_dir.py::test_both_ways_with_huggingface_hub",
            "api/test_local_dir.py::test_no_second_download",
        ),
    ),
)
