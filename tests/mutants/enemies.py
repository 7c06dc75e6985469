"""Breaks of what a server withstands: clients and sources that mean ill."""

from __future__ import annotations

from . import Mutant

_CHANGES = "a served file that changes"
_WAITS = "clients of a server that ask for nothing or take nothing"
_BOMBS = "clients of a server that ask for too much"
_LIES = "a Hub behind a server that lies"
_HERE = "a Hub behind a server that leads to this machine"

MUTANTS = (
    Mutant(
        "a-connection-that-says-nothing-stays",
        _WAITS,
        "server.protocol.connections:Connection.connection_made",
        "self._head = self._later(HEAD)",
        "pass",
        ("server/protocol/test_enemies.py::test_who_asks_for_nothing_is_cut_off",),
    ),
    Mutant(
        "who-hangs-up-is-an-error",
        _WAITS,
        "server.protocol.connections:Connection._cut",
        "sock is not None and sock.fileno() >= 0",
        "sock is not None",
        ("server/protocol/test_enemies.py::test_who_has_left_is_not_cut_off_again",),
    ),
    Mutant(
        "half-a-second-request-stays",
        _WAITS,
        "server.protocol.connections:Connection.data_received",
        "elif self._head is None",
        "elif False",
        ("server/protocol/test_enemies.py::test_who_asks_for_nothing_is_cut_off",),
    ),
    Mutant(
        "a-reader-that-takes-nothing-stays",
        _WAITS,
        "server.protocol.connections:Connection.pause_writing",
        "self._stall = self._later(STALL)",
        "pass",
        ("server/protocol/test_enemies.py::test_who_takes_nothing_is_cut_off",),
    ),
    Mutant(
        "a-reader-that-reads-is-cut-off",
        _WAITS,
        "server.protocol.connections:Connection.resume_writing",
        "self._stall.cancel()",
        "pass",
        ("server/protocol/test_enemies.py::test_who_reads_is_not_cut_off",),
    ),
    Mutant(
        "a-quick-reader-keeps-its-thread",
        _WAITS,
        "server.protocol.connections:_push",
        "and (position == begun or time.monotonic() < until)",
        "",
        ("server/protocol/test_enemies.py::test_a_quick_reader_takes_turns_with_others",),
    ),
    Mutant(
        "what-is-not-a-segment-goes-alone",
        _WAITS,
        "server.protocol.connections:_whole_segments",
        "sock.setsockopt(socket.IPPROTO_TCP, option, 1)",
        "pass",
        ("server/protocol/test_enemies.py::test_a_file_goes_in_whole_segments",),
    ),
    Mutant(
        "the-end-of-a-file-is-held-back",
        _WAITS,
        "server.protocol.connections:_whole_segments",
        "sock.setsockopt(socket.IPPROTO_TCP, option, 0)",
        "pass",
        ("server/protocol/test_enemies.py::test_a_file_goes_in_whole_segments",),
    ),
    Mutant(
        "a-file-that-became-shorter-is-sent-to-its-end",
        _CHANGES,
        "server.protocol.connections:_push",
        "raise BrokenOffError(position - begun, gone=False)",
        "return end",
        ("server/served/test_server.py::test_a_file_cut_short_ends_the_connection",),
    ),
    Mutant(
        "what-broke-off-is-not-counted",
        _CHANGES,
        "server.operation.observing:Observing.__call__",
        "answer.add(broken.nbytes)",
        "pass",
        ("server/served/test_server.py::test_a_file_cut_short_ends_the_connection",),
    ),
    Mutant(
        "a-body-is-waited-for-without-end",
        _WAITS,
        "server.protocol.forms:paths_of",
        "anyio.move_on_after(PATIENCE)",
        "anyio.move_on_after(1000)",
        ("server/protocol/test_enemies.py::test_bodies_that_are_bombs",),
    ),
    Mutant(
        "each-reader-has-a-large-piece",
        _BOMBS,
        "server.protocol.body:chunk_size",
        "ALL_CHUNKS // max(_bodies, 1)",
        "ALL_CHUNKS",
        ("server/protocol/test_enemies.py::test_slow_readers_count",),
    ),
    Mutant(
        "a-question-for-each-folder",
        _BOMBS,
        "server.pull_through:PullThrough._paths_info",
        "len(folders) > _MOST_FOLDERS",
        "len(folders) > 10**6",
        ("server/protocol/test_enemies.py::test_a_question_about_many_folders_is_one_for_the_source",),
    ),
    Mutant(
        "as-many-paths-as-one-likes",
        _BOMBS,
        "server.protocol.wire:parse_paths",
        "len(paths) > most",
        "len(paths) > 10**9",
        ("server/protocol/test_enemies.py::test_bodies_that_are_bombs",),
    ),
    Mutant(
        "a-part-is-taken-for-the-file",
        _LIES,
        "server.arriving.filling:Fill.misled",
        "self.file.size != self.size",
        "False",
        ("server/source/test_hostile_sources.py::test_lies_of_the_source",),
    ),
    Mutant(
        "a-lie-is-kept-for-ever",
        _LIES,
        "server.arriving.filling:Fill.run",
        "await (wanted.forget() if self.misled else wanted.heed(self.error))",
        "pass",
        ("server/source/test_hostile_sources.py::test_lies_of_the_source",),
    ),
    Mutant(
        "a-listing-that-leads-elsewhere-is-handed-on",
        _LIES,
        "server.source.relayed:without_xet",
        "_refuse_misleading(document)",
        "pass",
        ("server/source/test_hostile_sources.py::test_lies_of_the_source",),
    ),
    Mutant(
        "another-site-leads-here",
        _HERE,
        "network.reach:Reach.check",
        "near and not self._home_is_near",
        "False",
        (
            "server/source/test_hostile_sources.py::test_nothing_is_sent_there",
            "server/source/test_hostile_sources.py::test_a_source_elsewhere_does_not_lead_here",
        ),
    ),
    Mutant(
        "an-address-in-another-form-is-another",
        _HERE,
        "network.reach:_is_near",
        'getattr(address, "ipv4_mapped", None) or address',
        "address",
        ("server/source/test_hostile_sources.py::test_what_only_this_machine_can_reach",),
    ),
)
