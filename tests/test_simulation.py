"""scripts/simulate: the model shares links fairly, keeps every byte, and agrees with what can be reckoned by hand."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.simulation import __main__ as command
from scripts.simulation import report
from scripts.simulation.fluid import Fluid, max_min_rates
from scripts.simulation.objects import Objects, rank_within
from scripts.simulation.services import Quota, each_from_hub, service_per_rack
from scripts.simulation.site import Outcome, Setting, Site
from scripts.simulation.store import Pulls, pulled_at_will
from scripts.simulation.tree import FanOut, edges_of_tree, fanned_out

from .kit.structure import ROOT

# One object of 1000 bytes, links of 10 bytes a second, and nothing else that limits.
PLAIN = Setting(
    nbytes=1000.0, shards=1, piece=1000.0, node=10.0, internet=math.inf, connection=math.inf, uplink=math.inf,
    line=10.0, quota=10**9, owner=math.inf, patience=math.inf, rack=1000,
)  # fmt: skip


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


# -- fair shares -------------------------------------------------------------------------------


def test_the_example_of_the_textbook() -> None:
    """The narrow link holds a long flow back, and short ones on other links get what it leaves."""
    capacities = np.array([np.inf, 10.0, 4.0, 10.0])
    paths = np.array([[1, 2, 3], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert max_min_rates(paths, capacities) == near([2, 8, 2, 8])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_shares_are_max_min_fair(seed: int) -> None:
    """No link has too much; and each flow crosses a full link where none has more, or moves as fast as its feeder."""
    random = np.random.default_rng(seed)
    links, flows = int(random.integers(1, 9)), int(random.integers(1, 30))
    capacities = np.append(np.inf, random.choice([1.0, 2.0, 3.0, 10.0], links))
    paths = random.integers(0, links + 1, (flows, 3))
    paths[:, 0] = np.maximum(paths[:, 0], 1)
    paths = np.array([[*dict.fromkeys(path), 0, 0][:3] for path in paths.tolist()])  # no link twice
    feeders = np.array([random.integers(-1, row) if row else -1 for row in range(flows)])
    still = random.random(flows) < 0.1
    rates = max_min_rates(paths, capacities, feeders, still)
    used = np.bincount(paths.ravel(), np.repeat(rates, 3), links + 1)
    assert (used[1:] <= capacities[1:] * (1 + 1e-6)).all()
    for flow in np.flatnonzero(~still):
        feeder = feeders[flow]
        assert feeder < 0 or rates[flow] <= rates[feeder] * (1 + 1e-6) + 1e-12
        if feeder >= 0 and rates[flow] == near(rates[feeder]):
            continue
        full = [link for link in paths[flow] if link and used[link] == near(capacities[link])]
        assert any(rates[flow] >= rates[(paths == link).any(axis=1)].max() * (1 - 1e-6) for link in full)
    assert not rates[still].any()


def test_what_is_handed_on_never_outruns_what_came() -> None:
    """A fast link behind a slow one waits for it; one that starts later catches up, and no sooner."""
    fluid = Fluid(np.array([np.inf, 5.0, 20.0]))
    first = fluid.add(np.array([[1]]), 100.0)
    fluid.step(10.0)
    late = fluid.add(np.array([[2]]), 100.0, feeder=first)
    fluid.step()
    assert (fluid.now, fluid.moved(late)[0]) == near((10 + 50 / 15, 50 * 20 / 15))
    assert {*fluid.step()} == {*first, *late}
    assert fluid.now == near(20)
    assert fluid.carried[1:] == near([100, 100])


def test_flows_that_wait_for_each_other_are_no_endless_loop() -> None:
    """Nothing that can happen any more is an error."""
    fluid = Fluid(np.array([np.inf, 1.0]))
    fluid.add(np.array([[1]]), 10.0, allowed=np.array([4.0]))
    fluid.step()
    assert fluid.now == near(4)
    with pytest.raises(RuntimeError, match="wait for each other"):
        fluid.step()


def test_what_ends_within_a_quantum_ends_with_it() -> None:
    """And has moved its bytes, not what would have fitted in."""
    fluid = Fluid(np.array([np.inf, 1.0, 4.0]), quantum=7.0)
    flows = fluid.add(np.array([[1], [2]]), np.array([10.0, 12.0]))
    assert [*fluid.step()] == [flows[1]]
    assert [*fluid.step()] == [flows[0]]
    assert fluid.now == near(14)
    assert fluid.carried[1:] == near([10, 12])


# -- what can be reckoned by hand --------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 7, 40])
def test_every_node_from_the_hub(nodes: int) -> None:
    """The line carries everything, once for each node."""
    outcome = each_from_hub(PLAIN, nodes)
    assert (outcome.seconds, outcome.egress) == near((nodes * 100, nodes * 1000))
    assert outcome.hottest == "the line to the Hub"


def test_the_quota_of_requests() -> None:
    """Links are dealt out evenly; who has none waits for the next window, and ends as late as the last one needs."""
    setting = replace(PLAIN, line=math.inf, shards=4, quota=12, window=1000.0)
    outcome = each_from_hub(setting, 6)  # 30 requests, 12 in a window: the last links come after two
    assert outcome.seconds == near(2000 + 25)
    assert outcome.requests == 30
    assert outcome.hottest == "the Hub's quota of requests"
    assert each_from_hub(replace(setting, quota=30), 6).seconds == near(100)
    quota = Quota(replace(setting, quota=4), 3)  # an index for each, and one link
    quota.window()
    assert (quota.allowed() == [500, 500, 250]).all()
    # Of what a service gets, half comes after 1000 s; then it takes four nodes half of what all of it took.
    slow = replace(setting, quota=3, shards=4, rack=4)
    assert service_per_rack(slow, 4).seconds == near(1000 + 200)


@pytest.mark.parametrize(("nodes", "above", "seconds", "egress"), [
    (4, False, 400, 1),  # one rack: four at the service's link
    (16, False, 400, 4),  # four racks at once: the line has as much to carry as each service
    (24, False, 600, 6),  # six racks: the line is slower
    (24, True, 600, 1),  # the one above them has six to serve
])  # fmt: skip
def test_services_in_racks(nodes: int, above: bool, seconds: float, egress: int) -> None:
    """What arrives is handed on at once, so the slowest of the links alone counts, and not their sum."""
    outcome = service_per_rack(replace(PLAIN, rack=4), nodes, above=above)
    assert (outcome.seconds, outcome.egress) == near((seconds, egress * 1000))


@pytest.mark.parametrize("nodes", [2, 5, 30])
def test_the_herd_at_rays_first_holder(nodes: int) -> None:
    """All ask the one that has it, which sends it to all of them in turns."""
    outcome = pulled_at_will(PLAIN, nodes)
    assert (outcome.seconds, outcome.egress, outcome.wasted) == near((100 + (nodes - 1) * 100, 1000, 0))
    assert outcome.updates == nodes


def test_rays_second_request_sends_everything_again() -> None:
    """Who still waits after 20 seconds, and after 40 more, asks again, and a holder sends again what it had sent."""
    setting = replace(PLAIN, piece=500.0, patience=20.0)
    assert pulled_at_will(setting, 2).seconds == near(200)  # what is sent again comes behind what is waited for
    # The first object takes 50 s and 200 bytes are sent again, on the link of the second: 40 s at half its speed.
    outcome = pulled_at_will(setting, 2, at_once=1)
    assert (outcome.seconds, outcome.wasted) == near((100 + 50 + 40 + 30, 200))
    assert pulled_at_will(replace(setting, patience=math.inf), 2, at_once=1).seconds == near(200)


def test_each_node_begins_elsewhere() -> None:
    """With one object at a time all holders are asked from the beginning, about equally."""
    pulls = Pulls(Objects(Setting(), 600), 1, np.random.default_rng(7))
    assert pulls.asked.sum(axis=1).max() == 1
    assert pulls.asked.sum(axis=0).min() >= 8


@pytest.mark.parametrize(("admitted", "first"), [(2, 0), (1, 6)])
def test_nodes_are_admitted_as_holders_become_more(admitted: int, first: int) -> None:
    """For each known holder of an object so many may ask, and some in any case; the rest wait, and all get it."""
    setting = replace(PLAIN, shards=2, piece=500.0)
    pulls = Pulls(Objects(setting, 40), None, np.random.default_rng(7), admitted, first)
    while not pulls.objects.held.all():
        pulls.step()
        asking = (pulls.asked & (pulls.tries > 0)).sum(axis=0)
        assert (asking <= np.maximum(admitted * pulls.objects.known, first)).all()
    assert pulls.objects.fluid.now < pulled_at_will(setting, 40).seconds / 2


def test_a_node_sends_no_more_at_once_than_it_may() -> None:
    """Also where it is given something while it sends something else."""
    fan = FanOut(Objects(Setting(nbytes=9e9, piece=1e8), 40), 3, 2, np.random.default_rng(7))
    most = 0
    while not fan.objects.held.all():
        fan.step()
        most = max(most, int(np.bincount(fan.sending[:, 0], minlength=1).max()))
    assert most == 2


@pytest.mark.parametrize("nodes", [2, 6])
def test_a_chain(nodes: int) -> None:
    """A tree with one child each hands an object on from one to the next."""
    assert fanned_out(PLAIN, nodes, width=1).seconds == near(100 + (nodes - 1) * 100)


@pytest.mark.parametrize(("nodes", "hops"), [(2, 1), (3, 2), (4, 2), (7, 4), (15, 6)])
def test_a_tree_of_twos(nodes: int, hops: int) -> None:
    """Who has it sends it to two, one after the other: the last leaf is two steps later for each level."""
    assert fanned_out(PLAIN, nodes, width=2, lanes=1).seconds == near(100 + hops * 100)


def test_two_nodes_share_one_connection() -> None:
    """Several objects between the same two nodes have no more than one connection can carry."""
    setting = replace(PLAIN, shards=1, piece=250.0, connection=2.0)
    assert fanned_out(setting, 2).seconds == near(100 + 1000 / 2)


def test_the_owner_takes_updates_one_by_one() -> None:
    """A holder is known when the owner has got to it: on fast links that alone counts."""
    setting = replace(PLAIN, owner=1.0, node=1e12, line=1e12)
    assert fanned_out(setting, 8, width=7).seconds == near(1)  # seven hear of the root after a second
    assert pulled_at_will(setting, 8).seconds == near(1)
    assert fanned_out(setting, 7, width=2).seconds == near(3)  # the two children are known after 2 and 3 seconds
    outcome = fanned_out(setting, 4, width=1)
    assert outcome.seconds == near(3)
    assert outcome.hottest == "the owner's location updates"


# -- what holds everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [3, 33, 70])
@pytest.mark.parametrize("way", [each_from_hub, service_per_rack, pulled_at_will, fanned_out])
def test_no_byte_is_lost_or_made_up(way: object, nodes: int) -> None:
    """Each node gets the checkpoint once, and what was sent twice is counted; no link carries more than it can."""
    setting = Setting(nbytes=50e9, shards=7, rack=8)
    made: list[Fluid] = []
    fluid = Site.fluid

    def kept(site: Site, *arguments: float) -> Fluid:
        made.append(fluid(site, *arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "fluid", kept)
        outcome = way(setting, nodes)  # type: ignore[operator]
    site = Site(setting, nodes, services=way is service_per_rack)
    first = site.first["a node, in"]
    arrived = made[0].carried[first : first + nodes]
    assert arrived.sum() == near(nodes * setting.nbytes + outcome.wasted)
    assert (arrived >= setting.nbytes * (1 - 1e-6)).all()
    assert (made[0].carried[1:] <= site.capacities[1:] * outcome.seconds * (1 + 1e-6)).all()
    assert outcome.seconds >= setting.nbytes / setting.node
    assert outcome.egress == near({each_from_hub: nodes, service_per_rack: site.racks}.get(way, 1) * setting.nbytes)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_trees_reach_all_and_enter_a_rack_once(nodes: int, rack: int, width: int, seed: int) -> None:
    """Each node but the root has one parent; an object crosses the uplink of a rack once, inward."""
    site, random = Site(Setting(rack=rack), nodes), np.random.default_rng(seed)
    root = int(random.integers(nodes))
    edges = edges_of_tree(site, root, seed % 99, width, random)
    assert sorted([root, *edges[:, 1].tolist()]) == list(range(nodes))
    known = {root}
    for parent, child in edges.tolist():  # from the root outward, rack by rack
        assert parent in known
        known.add(child)
    assert np.bincount(edges[:, 0]).max(initial=0) <= 2 * width
    crossing = edges[site.rack_of(edges[:, 0]) != site.rack_of(edges[:, 1])]
    assert len(crossing) == site.racks - 1


def test_shards_are_fetched_all_over_the_site() -> None:
    """Few shards on many nodes are in many racks, and many shards on few nodes are shared out evenly."""
    assert len({*Site(Setting(), 960).rack_of(Objects(Setting(), 960).fetcher)}) == 30
    assert np.bincount(Objects(Setting(), 7).fetcher).tolist() == [5, 5, 4, 4, 4, 4, 4]


def test_pieces_and_paths() -> None:
    """A shard is cut as seldom as possible; within a rack no uplink is crossed."""
    assert [Setting(nbytes=size, shards=2, piece=4.0).groups for size in (7, 8, 9, 25)] == [1, 1, 2, 4]
    assert Objects(Setting(), 3).count == 60
    paths = Site(Setting(rack=4), 10).between(np.array([1, 1]), np.array([3, 9]))
    kinds = [[Site.KINDS[Site(Setting(rack=4), 10).kinds[link]] for link in path if link] for path in paths]
    assert kinds == [["a node, out", "a node, in"], ["a node, out", "a rack, out", "a rack, in", "a node, in"]]


def test_ranks() -> None:
    """How many equal ones stand before each."""
    assert rank_within(np.array([5, 2, 5, 5, 2])).tolist() == [0, 0, 1, 2, 1]


# -- the command -------------------------------------------------------------------------------


def simulate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/simulate", *arguments])
    command.main()


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each way and number of nodes, with units; JSON has the same numbers."""
    arguments = ["--nodes", "2,3", "--ways", "hub,tree", "--gb", "10"]
    simulate(monkeypatch, *arguments)
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [row[:3] for row in rows[2:]] == [
        ["2", "every node from the Hub", "20 GB (x2)"],
        ["2", "fan-out trees", "10 GB (x1)"],
        ["3", "every node from the Hub", "30 GB (x3)"],
        ["3", "fan-out trees", "10 GB (x1)"],
    ]
    simulate(monkeypatch, *arguments, "--json")
    outcomes = [Outcome(**fields) for fields in json.loads(capsys.readouterr().out)]
    assert report.table(outcomes, Setting(nbytes=10e9)) + "\n" == text


def test_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is a PNG."""
    pytest.importorskip("matplotlib")
    simulate(monkeypatch, "--nodes", "2,3", "--ways", "hub,tree", "--plot", str(tmp_path / "growth.png"))
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nodes", "0"], "at least one node"),
        (["--ways", "hub,huub"], "no such way: huub"),
        (["--line", "0"], "more than 0 is needed for line"),
        (["--gb", "-1"], "more than 0 is needed for nbytes"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No nodes, unknown ways, links without capacity."""
    with pytest.raises(SystemExit) as refused:
        simulate(monkeypatch, *arguments)
    assert says in f"{refused.value}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("count", "text"),
    [(4e5, "0"), (703e6, "703 MB"), (141.1e9, "141 GB"), (999.7e9, "1 TB"), (1.411e15, "1.41 PB"), (5e18, "5,000 PB")],
)
def test_bytes_are_told_with_three_digits(count: float, text: str) -> None:
    """Small counts are nothing beside a checkpoint."""
    assert report.nbytes(count) == text


def test_the_documented_table_is_what_the_command_says() -> None:
    """Rows of the page that are quick to make again are those that the model gives today."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for nodes in (10, 100):
        for way in (each_from_hub, service_per_rack, pulled_at_will, fanned_out):
            outcome: Outcome = way(Setting(), nodes)
            assert report.table([outcome], Setting()).splitlines()[-1] in page
