"""Breaks of what a server before another Hub promises to its clients, and to that Hub."""

from __future__ import annotations

from . import Mutant

_ONCE = "many clients that ask for the same at once"
_WRONG = "wrong bytes from the Hub behind a server"
_AWAY = "the Hub behind a server is away"
_WHO = "what only some may see of the Hub behind a server"
_ANSWERS = "what the Hub behind a server says that is not for clients"

MUTANTS = (
    Mutant(
        "each-client-asks-for-itself",
        _ONCE,
        "server.upstream:Upstream._once",
        "flight = self._flights.get(key)",
        "flight = None",
        ("server/test_pull_through.py::test_eight_cold_clients_at_once",),
    ),
    Mutant(
        "a-fill-for-each-reader",
        _ONCE,
        "server.fills:Fills.of",
        "fill = self._running.get(key)",
        "fill = None",
        ("server/test_pull_through.py::test_a_second_reader_shares_what_arrives",),
    ),
    Mutant(
        "far-readers-wait-for-the-fill",
        _ONCE,
        "server.fills:Fill.is_far",
        "self._partial.frontier + AHEAD < offset",
        "self._partial.frontier + AHEAD * 1000 < offset",
        ("server/test_pull_through.py::test_ranges_before_within_and_far_beyond_what_has_come",),
    ),
    Mutant(
        "the-end-before-the-hash",
        _WRONG,
        "server.fills:Fill.ready",
        "size if self._verified else size - HELD",
        "size",
        ("server/test_pull_through.py::test_no_byte_of_a_small_file_before_its_hash",),
    ),
    Mutant(
        "readers-go-on-over-wrong-bytes",
        _WRONG,
        "server.tailing:FillBody._is_cut_off",
        "self.fill.over or self.fill.generation != self.generation",
        "self.fill.over",
        ("server/test_pull_through.py::test_wrong_bytes_once",),
    ),
    Mutant(
        "goes-on-with-a-wrong-beginning",
        _WRONG,
        "server.distrust:Distrust.may_resume",
        "mark is None or self._now() - mark.at >= DAYS",
        "True",
        ("server/test_pull_through.py::test_wrong_bytes_once",),
    ),
    Mutant(
        "distrust-ends-with-the-process",
        _WRONG,
        "server.distrust:Distrust.__init__",
        "_read(path)",
        "{}",
        ("server/test_pull_through.py::test_wrong_bytes_for_ever",),
    ),
    Mutant(
        "asks-for-wrong-bytes-for-ever",
        _WRONG,
        "server.distrust:Distrust.rest_of",
        "mark.wrong < 2",
        "mark.wrong < 200",
        ("server/test_pull_through.py::test_wrong_bytes_for_ever",),
    ),
    Mutant(
        "a-wrong-hash-is-told-to-nobody",
        _WRONG,
        "engine.receiving:Receiving._start_over",
        "if consumer is not None:\n    await consumer.restarting(file)",
        "pass",
        ("server/test_pull_through.py::test_wrong_bytes_once",),
    ),
    Mutant(
        "what-is-kept-is-of-no-use",
        _AWAY,
        "server.upstream:Upstream._ask",
        "if fallback is None:",
        "if fallback is None or True:",
        ("server/test_pull_through.py::test_the_source_is_away",),
    ),
    Mutant(
        "waits-for-who-is-away",
        _AWAY,
        "server.freshness:Health.away",
        "0 < self._away_until - now <= AWAY",
        "False",
        ("server/test_pull_through.py::test_a_source_that_says_nothing",),
    ),
    Mutant(
        "waits-to-the-end-for-an-answer",
        _AWAY,
        "server.upstream:Upstream._fly",
        "anyio.move_on_after(PATIENCE)",
        "anyio.move_on_after(PATIENCE * 1000)",
        ("server/test_pull_through.py::test_a_source_that_says_nothing",),
    ),
    Mutant(
        "a-branch-never-moves",
        _AWAY,
        "server.freshness:is_fresh",
        "answer.fixed or 0 <= now - answer.at < BRANCH",
        "True",
        ("server/test_pull_through.py::test_answers_are_asked_for_again_when_they_may_have_changed",),
    ),
    Mutant(
        "what-is-kept-is-for-all",
        _WHO,
        "server.upstream:Upstream._ask",
        "may = self._access.may(who.key, repository, scope, asked_at)",
        "may = True",
        ("server/test_pull_through.py::test_who_may",),
    ),
    Mutant(
        "what-is-kept-is-for-all-while-the-hub-is-away",
        _WHO,
        "server.upstream:Upstream._ask",
        "kept and (kept.open or could)",
        "kept",
        ("server/test_pull_through.py::test_who_may",),
    ),
    Mutant(
        "who-could-can-for-ever",
        _WHO,
        "server.freshness:Access.may",
        "0 <= now - self._granted(who, repository, scope) < DECISION",
        "0 <= now - self._granted(who, repository, scope)",
        ("server/test_pull_through.py::test_who_may",),
    ),
    Mutant(
        "gated-files-for-who-reads-the-listing",
        _WHO,
        "server.freshness:Access.grant",
        "_SCOPES[: _SCOPES.index(scope) + 1]",
        "_SCOPES",
        ("server/test_pull_through.py::test_who_may_read_what_is_told_of_a_gated_repository",),
    ),
    Mutant(
        "xet-is-named",
        _ANSWERS,
        "server.upstream:_stripped",
        "if name not in _XET",
        "if name",
        ("server/test_pull_through.py::test_no_xet_and_no_link_that_leads_elsewhere",),
    ),
    Mutant(
        "the-page-of-a-portal-is-kept",
        _ANSWERS,
        "server.upstream:Upstream._relay",
        "await off_loop(lambda: without_xet(reply.body), slow=True)",
        "reply.body",
        ("server/test_pull_through.py::test_a_portal_in_place_of_the_source",),
    ),
)
