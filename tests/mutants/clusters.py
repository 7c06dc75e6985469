"""Breaks of what is brought to the nodes of a cluster."""

from __future__ import annotations

from . import Mutant

_ROOM = "a node of a cluster without room"
_LAID = "tensors behind others of odd sizes, in a store that is shared"
_PIECES = "a file that goes from node to node"
_TOKEN = "the token of who loads for a cluster"
_RANKS = "ranks that hold parts"
_GONE = "nodes of a cluster that die, or join"

MUTANTS = (
    Mutant(
        "store-of-a-node-not-looked-at",
        _ROOM,
        "cluster.nodes:check_room",
        "if in_memory > node.store:",
        "if False:",
        ("cluster/test_decisions.py::test_room_is_asked_of_each_node",),
    ),
    Mutant(
        "what-is-on-the-disk-needs-room-again",
        _ROOM,
        "cluster.nodes:check_room",
        "sizes[name] - state.present.get(name, 0)",
        "sizes[name]",
        ("cluster/test_decisions.py::test_room_is_asked_of_each_node",),
    ),
    Mutant(
        "what-a-disk-holds-besides-is-forgotten",
        _ROOM,
        "cluster.nodes:check_room",
        "state.room.get(name, sizes[name] - state.present.get(name, 0))",
        "sizes[name] - state.present.get(name, 0)",
        ("cluster/test_decisions.py::test_room_is_asked_of_each_node",),
    ),
    Mutant(
        "tensors-lie-as-in-the-file",
        _LAID,
        "cluster.layout:groups_of",
        "start = -(-end // ALIGNMENT) * ALIGNMENT",
        "start = end",
        ("cluster/test_decisions.py::test_groups_hold_each_tensor_on_64_bytes",),
    ),
    Mutant(
        "one-group-however-large",
        _LAID,
        "cluster.layout:groups_of",
        "if offsets and start + info.nbytes > most:",
        "if False:",
        ("cluster/test_decisions.py::test_groups_hold_each_tensor_on_64_bytes",),
    ),
    Mutant(
        "pieces-not-held-against-a-hash",
        _PIECES,
        "cluster.fetching:_digest",
        "if file.checksum is not None and digest != file.checksum.hex:",
        "if False:",
        ("cluster/test_files.py::test_a_wrong_piece_leaves_nothing",),
    ),
    Mutant(
        "wrong-pieces-are-gone-on-with",
        _PIECES,
        "cluster.fetching:_digest",
        "if isinstance(partial, StoredPartial):\n    partial.discard()",
        "if isinstance(partial, StoredPartial):\n    partial.suspend()",
        ("cluster/test_files.py::test_a_wrong_piece_leaves_nothing",),
    ),
    Mutant(
        "links-go-along-with-the-plan",
        _TOKEN,
        "cluster.plan:stripped",
        "target=None,",
        "",
        ("cluster/test_files.py::test_a_plan_tells_no_secret",),
    ),
    Mutant(
        "links-with-the-token-are-handed-out",
        _TOKEN,
        "cluster.keeper:_identifies",
        'bool({name.lower() for name in target.headers} - _PUBLIC) or "@" in urlsplit(target.url).netloc',
        "False",
        ("cluster/test_files.py::test_who_may_have_a_link",),
    ),
    Mutant(
        "token-goes-through-ray",
        _TOKEN,
        "cluster.driving:brought",
        "Errand(asked, offer, nodes, keep)",
        "Errand(asked + str(access), offer, nodes, keep)",
        ("cluster/test_secrets.py::test_a_source_without_links",),
    ),
    Mutant(
        "source-as-it-is-goes-through-ray",
        _TOKEN,
        "cluster.driving:_asked",
        "hashlib.sha256(json.dumps([str(one) for one in what]).encode()).hexdigest()",
        "json.dumps([str(one) for one in what])",
        ("cluster/test_files.py::test_what_tells_calls_apart_tells_no_secret",),
    ),
    Mutant(
        "token-in-the-name-of-a-call",
        _TOKEN,
        "cluster.keeper:Keeper.begin",
        "me = ray.get_runtime_context().current_actor",
        "me = ray.get_runtime_context().current_actor\nme.asked.options(name=str(pickle.dumps(request))).remote()",
        ("cluster/test_secrets.py::test_a_source_without_links",),
    ),
    Mutant(
        "token-in-the-log-of-the-keeper",
        _TOKEN,
        "cluster.keeper:Keeper.begin",
        "me = ray.get_runtime_context().current_actor",
        "me = ray.get_runtime_context().current_actor\nprint(pickle.dumps(request), flush=True)",
        ("cluster/test_secrets.py::test_a_source_without_links",),
    ),
    Mutant(
        "globs-that-match-nothing",
        _RANKS,
        "format.parallel:Division.of",
        "if not found:",
        "if False:",
        ("format/test_parallel.py::test_what_no_plan_says",),
    ),
    Mutant(
        "the-last-glob-counts",
        _RANKS,
        "format.parallel:Division.of",
        "for name in found if name not in splits",
        "for name in found",
        ("format/test_parallel.py::test_what_a_plan_says",),
    ),
    Mutant(
        "parts-of-packed-as-they-lie",
        _RANKS,
        "tensors.portions:_part_of_packed",
        "len(selections) == 1 and first.run == nbytes",
        "len(selections) == 1",
        ("tensors/test_portions.py::test_packed_parts_of_what_is_in_memory",),
    ),
    Mutant(
        "ranks-dealt-anew",
        _RANKS,
        "cluster.shares:dealt",
        "if not any(found.values()):",
        "if True:",
        ("cluster/test_shares.py::test_ranks_are_dealt",),
    ),
    Mutant(
        "parts-fetched-whole",
        _RANKS,
        "cluster.shares:Shares.fetched",
        "None in cuts or info.nbytes - parts < REQUEST_COST",
        "True",
        ("cluster/test_shares.py::test_what_is_fetched_for_ranks",),
    ),
    Mutant(
        "by-range-and-told-verified",
        _RANKS,
        "cluster.spreading:Spreading._verified",
        'and (self._keep != "memory" or self._plan.verified(file.name))',
        "",
        ("cluster/test_shares.py::test_what_is_fetched_for_ranks",),
    ),
    Mutant(
        "dead-nodes-are-wanted",
        _GONE,
        "cluster.nodes:nodes_of",
        'if row["Alive"]:',
        "if True:",
        ("cluster/test_decisions.py::test_nodes_that_are_dead_are_none",),
    ),
    Mutant(
        "another-node-at-each-look",
        _GONE,
        "cluster.nodes:chosen",
        "(node.id not in so_far, -node.store)",
        "-node.store",
        ("cluster/test_decisions.py::test_who_is_wanted",),
    ),
)
