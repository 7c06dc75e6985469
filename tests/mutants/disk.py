"""Breaks of what is on the disk, and when."""

from __future__ import annotations

from . import Mutant

_FULL = "no room, a full quota, a file that may not grow"
_SYNC = "fsync fails"
_POWER = "power is cut"
_SHORT = "a write that takes only a part"
_READ_ONLY = "a cache that may only be read"
_NO_LINKS = "a file system without links"
_LOCKS = "locks that do not work, or lie"
_PLANTED = "a link planted where we write"
_MODE = "umask, shared caches"
_JOURNAL = "a partial of an earlier run: torn, cut, grown, of other content"
_DAMAGED = "a damaged file in the cache, which others may have mapped"
_FOLDER = "several loads from one folder of a web server"
_NAMES_TWICE = "what is published is whole"

MUTANTS = (
    Mutant(
        "full-quota-is-nothing-special",
        _FULL,
        "errors:storage_errors",
        "error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)",
        "error.errno == errno.ENOSPC",
        ("storage/test_cache.py::test_no_room",),
    ),
    Mutant(
        "no-look-at-the-free-space",
        _FULL,
        "engine.bookkeeping:prepare_cache",
        "if needed > free:",
        "if free < 0:",
        ("engine/test_transfer.py::test_too_little_room_is_said_before_a_byte_moves",),
    ),
    Mutant(
        "disk-errors-get-out",
        _FULL,
        "storage.partial:FilePartial._store",
        "with storage_errors(self.path, needed=self.size):",
        "if self.size >= 0:",
        ("storage/test_partial.py::test_a_full_disk_is_said_and_what_landed_is_kept",),
    ),
    Mutant(
        "failed-sync-keeps-its-partial",
        _SYNC,
        "storage.partial:FilePartial.publish",
        "self.discard()",
        "",
        ("storage/test_partial.py::test_a_failed_sync_is_not_tried_again",),
    ),
    Mutant(
        "sync-tried-again",
        _SYNC,
        "storage.partial:FilePartial.publish",
        "os.fsync(self._fd)",
        "try:\n    os.fsync(self._fd)\nexcept OSError:\n    os.fsync(self._fd)",
        ("storage/test_partial.py::test_a_failed_sync_is_not_tried_again",),
    ),
    Mutant(
        "no-fsync",
        _POWER,
        "storage.partial:FilePartial.publish",
        "os.fsync(self._fd)",
        "pass",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "publishes-before-fsync",
        _POWER,
        "storage.partial:FilePartial.publish",
        (
            "try:\n"
            "    with storage_errors(self.path):\n"
            "        os.fsync(self._fd)\n"
            "except StorageError:\n"
            "    self.discard()\n"
            "    raise"
        ),
        (
            "give_name, early = lambda _: early, give_name(self.path)  # noqa: E731\n"
            "with storage_errors(self.path):\n"
            "    os.fsync(self._fd)"
        ),
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "no-fsync-of-the-folder-of-blobs",
        _POWER,
        "storage.cache:RepoCache.publish",
        "_sync(final.parent)",
        "",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "no-fsync-of-the-folder-of-links",
        _POWER,
        "storage.cache:RepoCache.link",
        "_sync(pointer.parent)",
        "",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "no-fsync-of-the-folder-of-refs",
        _POWER,
        "storage.cache:RepoCache.write_ref",
        "_sync(ref.parent)",
        "",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "no-fsync-of-small-files",
        _POWER,
        "storage.cache:_write_synced",
        "os.fsync(stream.fileno())",
        "pass",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "ref-first",
        _POWER,
        "engine.transfer:Transfer.run",
        "await off_loop(lambda: prepare_cache(located))",
        "await off_loop(lambda: prepare_cache(located))\nawait off_loop(lambda: record(located))",
        ("engine/test_faults.py::test_fatal",),
    ),
    Mutant(
        "short-writes-believed",
        _SHORT,
        "storage.partial:_write_all",
        "while data:",
        "if data:",
        ("storage/test_partial.py::test_short_writes_go_on",),
    ),
    Mutant(
        "writes-where-nothing-is-new",
        _READ_ONLY,
        "engine.bookkeeping:record",
        "if all(cache.known_absent",
        "if None and all(cache.known_absent",
        (
            "api/test_interop.py::test_an_unchanged_cache_is_not_written",
            "storage/test_cache.py::test_an_unchanged_ref_is_not_written",
        ),
    ),
    Mutant(
        "ref-always-written",
        _READ_ONLY,
        "storage.cache:RepoCache.write_ref",
        "if ref.is_file() and ref.read_bytes() == content:",
        "if ref.is_dir():",
        ("storage/test_cache.py::test_an_unchanged_ref_is_not_written",),
    ),
    Mutant(
        "links-taken-for-granted",
        _NO_LINKS,
        "storage.cache:RepoCache._probe_symlinks",
        "return False",
        "return True",
        ("storage/test_cache.py::test_a_file_system_without_links",),
    ),
    Mutant(
        "shares-a-partial-that-is-held",
        _LOCKS,
        "storage.locks:_claim_shared",
        "if _lock(descriptor) and _is_at(path, descriptor):",
        "if (_lock(descriptor) or True) and _is_at(path, descriptor):",
        ("storage/test_partial.py::test_the_second_claimer_gets_a_private_file",),
    ),
    Mutant(
        "no-look-at-what-was-locked",
        _LOCKS,
        "storage.locks:_is_at",
        "return (ours.st_ino, ours.st_dev) == (now.st_ino, now.st_dev)",
        "return bool(ours and now)",
        ("storage/test_partial.py::test_a_claim_on_a_file_that_was_published_meanwhile",),
    ),
    Mutant(
        "lock-errors-get-out",
        _LOCKS,
        "storage.locks:lock_blob",
        "except (NotImplementedError, OSError):",
        "except NotImplementedError:",
        ("engine/test_transfer.py::test_locks_that_do_not_work",),
    ),
    Mutant(
        "follows-a-link-at-the-partial",
        _PLANTED,
        "storage.locks:_open",
        "os.O_RDWR | os.O_NOFOLLOW | flags",
        "os.O_RDWR | flags",
        ("storage/test_partial.py::test_a_link_at_the_partials_path_is_refused",),
    ),
    Mutant(
        "follows-a-link-at-the-journal",
        _PLANTED,
        "storage.partial:_replace_text",
        'temporary.unlink(missing_ok=True)\ntry:\n    with open(temporary, "x"',
        'try:\n    with open(temporary, "w"',
        ("storage/test_partial.py::test_a_link_at_the_journals_path_is_not_followed",),
    ),
    Mutant(
        "blobs-for-their-owner-only",
        _MODE,
        "storage.locks:_open",
        "flags, 0o666)",
        "flags, 0o600)",
        ("storage/test_partial.py::test_published_files_have_the_mode_of_the_umask",),
    ),
    Mutant(
        "partials-of-other-users-are-fatal",
        _MODE,
        "storage.locks:claim",
        "if isinstance(error.__cause__, PermissionError):\n    break",
        "",
        ("storage/test_partial.py::test_another_users_partial_is_left_alone",),
    ),
    Mutant(
        "journal-of-other-content",
        _JOURNAL,
        "storage.partial:spans_on_disk",
        "if found != (_JOURNAL_FORMAT, identity, size, status.st_ino)",
        "if found != (_JOURNAL_FORMAT, saved['identity'], size, status.st_ino)",
        ("storage/test_partial.py::test_a_foreign_journal_is_ignored",),
    ),
    Mutant(
        "journal-of-another-file",
        _JOURNAL,
        "storage.partial:spans_on_disk",
        "if found != (_JOURNAL_FORMAT, identity, size, status.st_ino)",
        "if found != (_JOURNAL_FORMAT, identity, size, saved['inode'])",
        ("storage/test_partial.py::test_a_foreign_journal_is_ignored",),
    ),
    Mutant(
        "journal-of-a-cut-file",
        _JOURNAL,
        "storage.partial:spans_on_disk",
        "or status.st_size != size:",
        ":",
        ("storage/test_partial.py::test_a_partial_that_was_cut_or_grown_is_not_resumed",),
    ),
    Mutant(
        "appends-to-a-foreign-partial",
        _JOURNAL,
        "storage.partial:FilePartial.__init__",
        "if not self.present.nbytes:\n    self._forget_journal()",
        "",
        (
            "storage/test_partial.py::test_a_partial_without_a_journal_is_not_resumed",
            "storage/test_partial.py::test_a_stale_journal_dies_before_its_file_is_used_again",
        ),
    ),
    Mutant(
        "journal-survives-a-restart",
        _JOURNAL,
        "storage.partial:FilePartial.reset",
        "self._forget_journal()",
        "",
        ("storage/test_partial.py::test_reset_forgets_the_journal",),
    ),
    Mutant(
        "journal-leads",
        _JOURNAL,
        "storage.partial:Partial.accept",
        "self._store(offset, data)\nwith self._lock:\n    self.present.add(offset, offset + len(data))",
        (
            "with self._lock:\n"
            "    self.present.add(offset, offset + len(data))\n"
            "if isinstance(self, FilePartial):\n"
            "    self.save_journal()\n"
            "self._store(offset, data)"
        ),
        ("storage/test_partial.py::test_the_journal_never_leads",),
    ),
    Mutant(
        "prefix-not-hashed-again",
        _JOURNAL,
        "storage.partial:Partial.catch_up",
        "data = self._load(self._hashed, limit)",
        'data = getattr(self, "_was", memoryview(bytes(limit)))',
        (
            "storage/test_partial.py::test_suspend_and_resume",
            "storage/test_partial.py::test_bytes_that_rot_between_runs_are_noticed",
        ),
    ),
    Mutant(
        "no-journal-when-suspended",
        _JOURNAL,
        "storage.partial:FilePartial.suspend",
        "else:\n    self.save_journal()",
        "",
        ("storage/test_partial.py::test_suspend_and_resume",),
    ),
    Mutant(
        "spans-not-guarded",
        _JOURNAL,
        "storage.partial:Partial.accept",
        "with self._lock:\n    self.present.add(offset, offset + len(data))",
        "self.present.add(offset, offset + len(data))",
        ("storage/test_partial.py::test_several_threads_land_at_once",),
    ),
    Mutant(
        "damaged-blob-emptied-in-place",
        _DAMAGED,
        "storage.cache:RepoCache.quarantine",
        "os.replace(file, blobs /",
        'file.write_bytes(b"")\nos.replace(file, blobs /',
        ("storage/test_cache.py::test_quarantine",),
    ),
    Mutant(
        "payload-of-others-moved",
        _DAMAGED,
        "storage.cache:RepoCache.quarantine",
        "if file == path or file.parent == blobs:",
        "if file:",
        ("storage/test_cache.py::test_quarantine_moves_nothing_of_others",),
    ),
    Mutant(
        "blob-written-in-place",
        _NAMES_TWICE,
        "storage.cache:RepoCache.partial",
        'return self.folder / "blobs" / f"{_blob_name(key)}.asyncfetch.incomplete"',
        'return self.folder / "blobs" / _blob_name(key)',
        ("storage/test_cache.py::test_names", "engine/test_transfer.py::test_cancelled_at_any_burst"),
    ),
    Mutant(
        "ref-written-in-place",
        _NAMES_TWICE,
        "storage.cache:RepoCache.write_ref",
        "_write_synced(temporary, content)\n_rename(temporary, ref)",
        "ref.unlink(missing_ok=True)\n_write_synced(ref, content)",
        ("storage/test_partial.py::test_the_order_of_publication",),
    ),
    Mutant(
        "temporary-files-left",
        _NAMES_TWICE,
        "storage.cache:RepoCache._temporary",
        "with suppress(OSError):\n    path.unlink()",
        "",
        ("storage/test_cache.py::test_a_failure_leaves_no_temporary_file",),
    ),
    Mutant(
        "link-without-a-look",
        _NAMES_TWICE,
        "storage.cache:RepoCache.link",
        "if pointer.is_symlink() and os.readlink(pointer) == target:",
        "if pointer.is_symlink():",
        ("storage/test_cache.py::test_a_wrong_link_is_replaced",),
    ),
    Mutant(
        "one-name-for-all-of-a-folder",
        _FOLDER,
        "sources.web_finder:WebPlace.__init__",
        'self._name = source.file or "main"',
        'self._name = "main"',
        ("sources/test_web_cache.py::test_one_file_after_the_other",),
    ),
    Mutant(
        "a-snapshot-for-each-selection",
        _FOLDER,
        "sources.web_finder:_commit_for",
        "return next(joined, commit_of(wanted))",
        "return commit_of(wanted)",
        ("sources/test_web_cache.py::test_a_part_of_what_is_here",),
    ),
    Mutant(
        "only-the-last-snapshot-offline",
        _FOLDER,
        "sources.web_finder:WebPlace.commits",
        "return list(await off_loop(lambda: known_states(self.cache, self._name)))",
        "return list(await off_loop(lambda: known_states(self.cache, self._name)))[:1]",
        (
            "sources/test_web_cache.py::test_a_part_that_changed",
            "sources/test_web_cache.py::test_parts_of_two_times_are_not_one_checkpoint",
        ),
    ),
    Mutant(
        "another-snapshots-file-by-its-name-alone",
        _FOLDER,
        "sources.web_finder:WebPlace._find_cached",
        "keys.get(file.name) == file.key",
        "file.name in keys",
        ("sources/test_web_cache.py::test_one_file_changes",),
    ),
    Mutant(
        "another-snapshots-file-fetched-again",
        _FOLDER,
        "engine.receiving:_already_there",
        "file.path.name if file.path else file.blob",
        "file.blob",
        ("sources/test_web_cache.py::test_the_whole_after_a_part",),
    ),
    Mutant(
        "parts-of-two-times-put-together",
        _FOLDER,
        "sources.web_finder:_commit_for",
        "if wanted.items() <= keys.items()",
        "if all(keys.get(name, key) == key for name, key in wanted.items())",
        ("sources/test_web_cache.py::test_parts_of_two_times_are_not_one_checkpoint",),
    ),
    Mutant(
        "joined-without-a-validator",
        _FOLDER,
        "sources.web_finder:WebPlace.recall",
        "states if all(file.resumable for file in files) else {}",
        "states",
        ("sources/test_web_cache.py::test_a_file_without_a_validator",),
    ),
    Mutant(
        "what-was-there-before-stays",
        _FOLDER,
        "engine.receiving:Receiving._publish",
        "same = file.size if file.resumable else None",
        "same = file.size",
        ("sources/test_web_cache.py::test_a_file_without_a_validator_changes",),
    ),
    Mutant(
        "falls-back-to-another-snapshot",
        _FOLDER,
        "sources.finder:find",
        "names = [found.name]",
        "names = names[:]",
        ("sources/test_web_cache.py::test_a_shard_that_is_not_here_is_no_reason_to_fall_back",),
    ),
    Mutant(
        "damaged-record-believed",
        _FOLDER,
        "storage.identities:read_identities",
        "if hashlib.sha1(raw, usedforsecurity=False).hexdigest() != commit:",
        "if not raw:",
        (
            "sources/test_web_cache.py::test_a_damaged_record",
            "storage/test_identities.py::test_a_record_is_whole_or_none",
        ),
    ),
    Mutant(
        "unwritable-record-is-fatal",
        _FOLDER,
        "storage.identities:write_identities",
        "with suppress(OSError):",
        "with suppress(ValueError):",
        ("sources/test_web_cache.py::test_a_record_that_cannot_be_written",),
    ),
)
