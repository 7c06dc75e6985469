"""Breaks of which tensor, and which part of it, is meant by a name, an index or a rank."""

from __future__ import annotations

from . import Mutant

_MANY = "as many names as the largest models have"
_RANKS = "a part for a rank"
_PACKED = "a part of a packed tensor"
_SEVERAL = "several parts at once"
_TIED = "names of tied tensors that were not written"

MUTANTS = (
    Mutant(
        "small-index-limit",
        _MANY,
        "policy:Policy",
        "max_index_bytes: int = 40 * MiB",
        "max_index_bytes: int = 16 * MiB",
        ("api/test_large.py::test_an_index_of_250_000_names",),
    ),
    Mutant(
        "every-name-compared",
        _MANY,
        "format.near:near_name",
        "names if len(names) <= _COMPARED else _respelled(name, names)",
        "names",
        ("format/test_near.py::test_the_work_does_not_grow_with_the_names",),
    ),
    Mutant(
        "words-not-corrected",
        _MANY,
        "format.near:_respelled",
        "[right.get(part, part) for part in given]",
        "given",
        ("format/test_near.py::test_finds_what_was_meant",),
    ),
    Mutant(
        "numpy-splits-for-torch",
        _RANKS,
        "format.ranks:_bounds",
        'if split == "chunk":',
        'if split == "chunks":',
        ("format/test_ranks.py::test_four_rows_over_three_ranks",),
    ),
    Mutant(
        "chunk-beyond-the-end",
        _RANKS,
        "format.ranks:_bounds",
        "return min(rank * block, size), min((rank + 1) * block, size)",
        "return rank * block, (rank + 1) * block",
        ("format/test_ranks.py::test_ranks_split_by_either_rule",),
    ),
    Mutant(
        "fused-parts-split-as-one",
        _RANKS,
        "format.ranks:cut_of_rank",
        "seen = (*before, parts, size // parts, *after)",
        "seen = (*before, size // parts, parts, *after)",
        ("format/test_ranks.py::test_fused_parts_are_split_each_for_itself",),
    ),
    Mutant(
        "parts-one-after-another",
        _RANKS,
        "tensors.portions:Portion.array",
        "if len(self.selections) > 1 and self.outer > 1:",
        "if self.outer < 1:",
        ("api/test_parts.py::test_fused_parts",),
    ),
    Mutant(
        "packed-parts-rounded",
        _PACKED,
        "format.packed:select_packed",
        "if not in_one or start % group or stop % group:",
        "if not in_one:",
        ("api/test_parts.py::test_packed_parts",),
    ),
    Mutant(
        "packed-steps-ignored",
        _PACKED,
        "format.packed:select_packed",
        "if not in_one or start % group or stop % group:",
        "if start % group or stop % group:",
        ("api/test_parts.py::test_packed_parts",),
    ),
    Mutant(
        "packed-never-turned-round",
        _PACKED,
        "tensors.portions:Portion.array",
        "memory = _turned_round(memory, self.selections[0])",
        "pass",
        ("api/test_parts.py::test_packed_parts",),
    ),
    Mutant(
        "overlaps-joined",
        _SEVERAL,
        "format.slices:coalesce",
        "not 0 <= part.start - group[-1][0].stop <= gap",
        "part.start - group[-1][0].stop > gap",
        ("api/test_parts.py::test_several_parts_of_several_tensors",),
    ),
    Mutant(
        "tied-names-unknown",
        _TIED,
        "api.contents:Contents._find",
        "self._tied().get(name, name)",
        "name",
        ("api/test_parts.py::test_tied_names_are_names",),
    ),
    Mutant(
        "tied-names-not-selected",
        _TIED,
        "format.index:select_tensors",
        "if tensor in tied or wanted(tensor)",
        "if wanted(tensor)",
        ("api/test_parts.py::test_tied_names_are_selected",),
    ),
    Mutant(
        "tied-names-not-followed",
        _TIED,
        "format.index:aliases_in",
        "while kept not in names and kept in said and said[kept] not in seen:",
        "if kept in said:",
        ("api/test_parts.py::test_tied_names_are_names",),
    ),
)
