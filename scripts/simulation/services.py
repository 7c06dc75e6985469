"""Every node from the Hub, and services between: `asyncfetch serve --upstream` in each rack."""

from __future__ import annotations

import numpy as np

from .fluid import Floats, Fluid, Ints
from .site import Outcome, Setting, Site


class Quota:
    """The Hub's quota of requests, over fixed windows: who asks when it is used up waits for the next one.

    Of each download the first request is for its index. What is left goes to who has had the least, a link each.
    """

    def __init__(self, setting: Setting, downloads: int) -> None:
        self._setting = setting
        self._links = np.full(downloads, -1)  # -1: the index is not here yet
        self._deal()
        self.next_at = setting.window

    def allowed(self) -> Floats:
        """How many bytes each download may have: of as many shards as it has links of."""
        setting = self._setting
        return np.maximum(self._links, 0) * (setting.nbytes / setting.shards)

    def over(self) -> bool:
        """Whether nobody waits for a request any more."""
        return bool((self._links >= self._setting.shards).all())

    def window(self) -> None:
        """The next window begins."""
        self._deal()
        self.next_at += self._setting.window

    def _deal(self) -> None:
        """Round by round, one request for each download that wants one."""
        left = self._setting.quota
        while left and not self.over():
            least = self._links.min()
            asking = np.flatnonzero(self._links == least)[:left]
            self._links[asking] += 1
            left -= len(asking)


def each_from_hub(setting: Setting, nodes: int) -> Outcome:
    """Every node downloads all of it."""
    site = Site(setting, nodes)
    fluid, quota = site.fluid(), Quota(setting, nodes)
    everyone = np.arange(nodes)
    downloads = fluid.add(site.from_hub(everyone), setting.nbytes, allowed=quota.allowed())
    _run(fluid, quota, downloads)
    return Outcome.of("every node from the Hub", site, fluid, requests=nodes * setting.requests)


def service_per_rack(setting: Setting, nodes: int, *, above: bool = False) -> Outcome:
    """A service in each rack fetches once and hands on what arrives; `above`: they fetch from one more of their kind.

    A service is a machine of its own, with a link like a node's.
    """
    site = Site(setting, nodes, services=True)
    racks, everyone = np.arange(site.racks), np.arange(nodes)
    count = 1 if above else site.racks
    fluid, quota = site.fluid(), Quota(setting, count)
    top = np.array([site.racks])
    first = _from_hub(site, top if above else racks)
    downloads = fluid.add(first, setting.nbytes, allowed=quota.allowed())
    in_racks = downloads
    if above:
        paths = _handed_on(site, np.repeat(top, site.racks), site.link("a service, in", racks), racks)
        in_racks = fluid.add(paths, setting.nbytes, feeder=np.repeat(downloads, site.racks))
    rack = site.rack_of(everyone)
    fluid.add(_handed_on(site, rack, site.link("a node, in", everyone)), setting.nbytes, feeder=in_racks[rack])
    _run(fluid, quota, downloads)
    way = "a service in each rack, below one for all" if above else "a service in each rack"
    return Outcome.of(way, site, fluid, requests=count * setting.requests)


def _from_hub(site: Site, services: Ints) -> Ints:
    """The paths from the Hub to services."""
    line = np.full(len(services), site.first["the line to the Hub"])
    racks = np.where(services < site.racks, site.link("a rack, in", services), 0)
    outside = site.link("a service's way to the Internet", services)
    return np.stack([line, racks, outside, site.link("a service, in", services)], axis=1)


def _handed_on(site: Site, services: Ints, into: Ints, racks: Ints | None = None) -> Ints:
    """The paths from services to links, through the uplinks of `racks` if they are elsewhere."""
    enters = np.zeros_like(into) if racks is None else site.link("a rack, in", racks)
    return np.stack([site.link("a service, out", services), enters, into, np.zeros_like(into)], axis=1)


def _run(fluid: Fluid, quota: Quota, downloads: Ints) -> None:
    while len(fluid):
        if quota.over():
            fluid.step()
            continue
        fluid.step(quota.next_at)
        if fluid.now >= quota.next_at:
            quota.window()
            waiting = np.isin(downloads, fluid.ids)
            fluid.allow(downloads[waiting], quota.allowed()[waiting])
