"""Breaks of what is written: folders that others read, checkpoints that become others, and what leaves the cache."""

from __future__ import annotations

from . import Mutant

_STOPPED = "a save that is killed, fails or is cancelled"
_TOOLS = "other tools that read what was saved"
_SHARED = "tensors that share memory"
_PLACES = "a place to save in that is none"
_WRONG = "a conversion that would be wrong"
_GOES_ON = "a conversion that is killed"
_NUMBERS = "numbers that are converted"
_BESIDE = "what lies beside a checkpoint that is converted"
_CHANGED = "a source that changes while it is converted"
_REMOVED = "what is removed from a cache that others use"
_DAMAGED = "a cache in which something is damaged"

_KILLED = ("saving/test_save.py::test_a_kill_at_any_moment_leaves_the_old_or_the_new",)
_THEIRS = ("saving/test_save.py::test_the_files_are_those_of_huggingface_hub",)
_REFUSED = ("saving/test_convert.py::test_what_is_refused",)
_RESUMED = ("saving/test_convert.py::test_a_run_that_was_killed_is_gone_on_with",)

MUTANTS = (
    Mutant(
        "shards-replaced-under-their-index",
        _STOPPED,
        "saving.folder:publish",
        "taken = index is not None and any(os.path.lexists(folder / shard) for shard in draft.layout.shards)",
        "taken = False",
        _KILLED,
    ),
    Mutant(
        "index-before-its-shards",
        _STOPPED,
        "saving.folder:publish",
        'if index is not None and taken:\n    _write_index(draft, staging, folder, below=f"{staging.name}/")',
        "if index is not None:\n    _write_index(draft, staging, folder)",
        _KILLED,
    ),
    Mutant(
        "index-of-names-that-may-be-lost",
        _STOPPED,
        "saving.folder:publish",
        "sync_folder(folder)",
        "pass",
        ("saving/test_save.py::test_what_is_named_is_synced_before",),
    ),
    Mutant(
        "old-shards-before-their-index",
        _STOPPED,
        "saving.folder:_remove_old",
        'old.sort(key=lambda name: not name.endswith(".json"))',
        'old.sort(key=lambda name: name.endswith(".json"))',
        _KILLED,
    ),
    Mutant(
        "half-a-save-left-behind",
        _STOPPED,
        "saving.folder:saved",
        "if not _names(folder, draft, staging):",
        "if _names(folder, draft, staging):",
        (
            "saving/test_save.py::test_progress_and_a_failing_disk",
            "saving/test_save.py::test_a_cancelled_save_leaves_the_old",
        ),
    ),
    Mutant(
        "split-by-the-next-tensor-too-late",
        _TOOLS,
        "format.sharding:laid_out",
        "if limit is not None and filled + nbytes > limit:",
        "if limit is not None and filled > limit:",
        _THEIRS,
    ),
    Mutant(
        "sorted-by-width-alone",
        _TOOLS,
        "format.writer:_in_order",
        "(_RANK[tensors[name].dtype], name)",
        "(-DTYPES[tensors[name].dtype].bits, name)",
        _THEIRS,
    ),
    Mutant(
        "strides-ignored",
        _TOOLS,
        "format.writer:in_pieces",
        "rows = STEP // row",
        "rows = max(STEP // row - 1, 1) + 1",
        ("format/test_writer.py::test_what_is_not_contiguous_goes_out_in_order_in_pieces",),
    ),
    Mutant(
        "overlaps-written",
        _SHARED,
        "saving.outgoing:_refuse_overlaps",
        "if _share(tensors[other], tensors[name]):",
        "if False:",
        ("saving/test_save.py::test_tensors_of_torch_that_share_memory",),
    ),
    Mutant(
        "columns-overlap",
        _SHARED,
        "saving.outgoing:_refuse_overlaps",
        "if _share(tensors[other], tensors[name]):",
        "if tensors:",
        ("saving/test_save.py::test_tensors_of_torch_that_share_memory",),
    ),
    Mutant(
        "saved-into-the-cache",
        _PLACES,
        "saving.folder:check_folder",
        'if real.parent.name == "snapshots" and is_commit(real.name):',
        "if False:",
        ("saving/test_save.py::test_folders_that_are_refused",),
    ),
    Mutant(
        "file-in-the-way-not-named",
        _PLACES,
        "saving.folder:check_folder",
        "if not above.is_dir():",
        "if not above:",
        ("saving/test_save.py::test_folders_that_are_refused",),
    ),
    Mutant(
        "two-processes-save-at-once",
        _PLACES,
        "saving.folder:locked",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ("saving/test_save.py::test_folders_that_are_refused",),
    ),
    Mutant(
        "scale-left-out-unnoticed",
        _WRONG,
        "saving.conversion:_refuse_parted",
        "if None in scales:",
        "if not scales:",
        _REFUSED,
    ),
    Mutant(
        "scale-renamed-away",
        _WRONG,
        "saving.conversion:_refuse_parted",
        "if again is None or again.scales != scales:",
        "if again is not None and again.scales != scales:",
        _REFUSED,
    ),
    Mutant(
        "converted-into-itself",
        _WRONG,
        "saving.converting:check_output",
        "if found and not begun:",
        "if False:",
        _REFUSED,
    ),
    Mutant(
        "shards-of-another-conversion",
        _GOES_ON,
        "saving.converting:_gone_on_with",
        "if begun == fingerprint:",
        "if begun is not None:",
        ("saving/test_convert.py::test_another_conversion_takes_the_place_of_one_that_was_killed",),
    ),
    Mutant(
        "begins-again-after-a-kill",
        _GOES_ON,
        "saving.converting:_gone_on_with",
        "return frozenset(name for name, size in sizes.items() if _size(staging / name) == size)",
        "return frozenset(name for name, size in sizes.items() if size < 0)",
        _RESUMED,
    ),
    Mutant(
        "too-large-unnoticed",
        _NUMBERS,
        "saving.stored:Overflows.look",
        "if name not in self.names and np.isfinite(before[~np.isfinite(after)]).any():",
        "if name in self.names:",
        ("saving/test_convert.py::test_too_large_numbers_and_odd_configs_are_told",),
    ),
    Mutant(
        "too-large-forgotten-by-the-next-run",
        _NUMBERS,
        "saving.converting:_noting",
        "overflows.names |= dict.fromkeys(map(str, json.loads(noted.read_bytes())))",
        "pass",
        ("saving/test_convert.py::test_too_large_numbers_and_odd_configs_are_told",),
    ),
    Mutant(
        "scales-of-other-rows",
        _NUMBERS,
        "format.dequantize:in_rows",
        "scale[start // block : -(-stop // block)] if block else scale,",
        "scale[: -(-(stop - start) // block)] if block else scale,",
        ("saving/test_convert.py::test_scaled_weights_become_numbers",),
    ),
    Mutant(
        "config-of-the-old-dtype",
        _NUMBERS,
        "saving.configs:updated",
        "if new == config:",
        "if new != config:",
        ("saving/test_convert.py::test_it_is_what_load_gives",),
    ),
    Mutant(
        "hidden-files-converted",
        _BESIDE,
        "saving.conversion:Conversion.companions",
        "if not is_hidden(name)",
        "",
        ("saving/test_convert.py::test_from_the_hub",),
    ),
    Mutant(
        "no-room-for-what-lies-beside",
        _BESIDE,
        "saving.converting:check_output",
        "sum(file.size for file in beside.values())",
        "0",
        ("saving/test_convert.py::test_there_must_be_room_for_what_lies_beside",),
    ),
    Mutant(
        "room-for-what-is-there-already",
        _BESIDE,
        "saving.converting:check_output",
        '[*(folder / _STAGING).glob("*.safetensors"), *brought]',
        '(folder / _STAGING).glob("*.safetensors")',
        ("saving/test_convert.py::test_there_must_be_room_for_what_lies_beside",),
    ),
    Mutant(
        "changed-source-unnoticed",
        _CHANGED,
        "saving.stored:StoredFile.read",
        "if _state(os.fstat(stream.fileno())) != self.state:",
        "if False:",
        ("saving/test_convert.py::test_a_source_that_changes_meanwhile_and_a_full_disk",),
    ),
    Mutant(
        "blob-of-others-removed",
        _REMOVED,
        "storage.removal:plan_removal",
        "unnamed = given | {entry.blob for entry in leaving if entry.blob is not None and entry.blob not in named}",
        "unnamed = given | {entry.blob for entry in leaving if entry.blob is not None}",
        ("storage/test_removal.py::test_commits_go_as_by_huggingface_hub",),
    ),
    Mutant(
        "removed-under-a-lock",
        _REMOVED,
        "storage.removal:_remove_blobs",
        "if blob not in ours or blob in named:",
        "if blob in named:",
        ("storage/test_removal.py::test_what_somebody_uses_by_then_stays",),
    ),
    Mutant(
        "linked-meanwhile-and-removed",
        _REMOVED,
        "storage.removal:_remove_blobs",
        "if blob not in ours or blob in named:",
        "if blob not in ours:",
        ("storage/test_removal.py::test_what_somebody_uses_by_then_stays",),
    ),
    Mutant(
        "refs-to-nothing",
        _REMOVED,
        "storage.removal:remove",
        "ref.unlink()",
        "pass",
        ("storage/test_removal.py::test_commits_go_as_by_huggingface_hub",),
    ),
    Mutant(
        "links-followed-when-removing",
        _REMOVED,
        "storage.removal:entries_of",
        "blob = Path(target) if os.path.dirname(target) == blobs else None",
        "blob = Path(target)",
        ("storage/test_removal.py::test_links_out_of_the_cache_are_not_followed",),
    ),
    Mutant(
        "partial-of-others-removed",
        _REMOVED,
        "storage.removal:remove_partial",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ("storage/test_removal.py::test_a_partial_that_is_written_stays",),
    ),
    Mutant(
        "busy-partials-not-known",
        _REMOVED,
        "storage.inventory:_is_locked",
        "except BlockingIOError:\n    return True",
        "except BlockingIOError:\n    return False",
        ("cli/test_caching.py::test_what_is_being_downloaded_stays",),
    ),
    Mutant(
        "damage-is-not-wrong",
        _DAMAGED,
        "cli.caching:verify",
        "code = 5 if wrong else 0",
        "code = 0",
        ("cli/test_caching.py::test_verify_finds_what_is_damaged",),
    ),
    Mutant(
        "missing-blob-unnoticed",
        _DAMAGED,
        "storage.inventory:_repository",
        "dangling.append(entry)",
        "pass",
        ("cli/test_caching.py::test_verify_finds_what_is_damaged",),
    ),
)
