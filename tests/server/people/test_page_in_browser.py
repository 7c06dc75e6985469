"""The page of a server before another Hub, in a real browser.

In a file of its own: playwright keeps an event loop in the thread of the tests, and async tests have theirs there.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from asyncfetch.server import Server

from ...kit.browser import chromium
from ...kit.canaries import TOKEN
from ...kit.fault_server import FaultServer
from ..services import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.heavy

WEIGHTS = random.Random(5).randbytes(3_000_000)


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        for name, files in {"org/model": {"model.safetensors": WEIGHTS}, "org/small": {"config.json": b"{}\n"}}.items():
            server.listing(server.hub(name, files), per_page=50, elsewhere="http://elsewhere.invalid")
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@contextmanager
def page_of(browser: Browser, **options: Any) -> Iterator[Page]:
    """A tab of its own, that has reported no error in the end."""
    wrong: list[str] = []
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    assert wrong == []


@contextmanager
def serving(source: FaultServer, tmp_path: Path, **options: Any) -> Iterator[Server]:
    with Server(tmp_path / "cache", upstream=source.url, **options) as server:
        yield server


def test_a_fill_is_watched_to_its_end(browser: Browser, source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(next(path for path in source.resources if path.startswith("/storage/")), gate, forever=True)
    with serving(source, tmp_path) as server, page_of(browser) as page:
        page.goto(server.url)
        page.get_by_label("Repository", exact=True).fill("org/model")
        page.get_by_label("Only").fill("*.safetensors *.json")
        page.get_by_role("button", name="Fetch", exact=True).click()
        page.get_by_text("org/model@main has no file '*.json'").wait_for()
        page.get_by_label("Repository", exact=True).fill("org/model")
        page.keyboard.press("Enter")
        bar = page.get_by_role("progressbar", name="How much of org/model/model.safetensors is here")
        bar.wait_for()
        page.wait_for_function("bar => bar.value >= 1000000 - 65536", arg=bar.element_handle())
        assert bar.evaluate("bar => bar.max") == len(WEIGHTS)
        assert page.locator("#arriving").get_by_text("1 MB of 3 MB").is_visible()
        cancel = page.get_by_role("button", name="Cancel org/model@main")
        cancel.focus()
        gate.opened.set()
        page.get_by_role("status").filter(has_text="org/model@main: done").wait_for()
        assert page.locator("#arriving").get_by_text("Nothing at the moment").is_visible()
        # The button is another one by now, and the focus is where it was.
        assert page.evaluate("document.activeElement.textContent") == "Remove from list org/model@main"
        page.get_by_role("row", name="org/model 3 MB").wait_for()


def test_pin_and_evict(browser: Browser, source: FaultServer, tmp_path: Path) -> None:
    with serving(source, tmp_path) as server, page_of(browser) as page:
        for name in ("org/model/resolve/main/model.safetensors", "org/small/resolve/main/config.json"):
            assert httpx.get(f"{server.url}/{name}").status_code == 200
        page.goto(server.url)
        page.get_by_role("button", name="Pin org/model").press("Enter")
        page.get_by_text("pinned", exact=True).wait_for()
        assert page.evaluate("document.activeElement.textContent") == "Unpin org/model"
        assert page.get_by_role("button", name="Evict org/model").count() == 0
        asked: list[str] = []
        page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
        page.get_by_role("button", name="Evict org/small").click()
        page.get_by_role("row", name="org/small").wait_for(state="detached")
        assert "org/small" in asked[0]
        assert page.evaluate("document.activeElement.id") == "kept-title"
        kept = httpx.get(f"{server.url}/api/asyncfetch/kept").json()
        assert [(one["repository"], one["pinned"]) for one in kept] == [("org/model", True)]


def test_without_javascript_it_reads(browser: Browser, source: FaultServer, tmp_path: Path) -> None:
    with (
        serving(source, tmp_path) as server,
        page_of(browser, java_script_enabled=False, viewport={"width": 400, "height": 800}) as page,
    ):
        assert httpx.get(f"{server.url}/org/model/resolve/main/model.safetensors").status_code == 200
        page.goto(server.url)
        assert page.get_by_role("rowheader", name="org/model").is_visible()
        assert page.get_by_text(f"export HF_ENDPOINT={server.url}").is_visible()
        assert page.get_by_role("button").count() == 0


def test_who_has_the_admin_token(browser: Browser, source: FaultServer, tmp_path: Path) -> None:
    with serving(source, tmp_path, admin_token=TOKEN) as server, page_of(browser) as page:
        assert httpx.get(f"{server.url}/org/model/resolve/main/model.safetensors").status_code == 200
        page.goto(server.url)
        page.get_by_role("row", name="org/model").wait_for()
        assert page.get_by_role("button", name="Pin org/model").count() == 0
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Show all").click()
        page.get_by_role("button", name="Pin org/model").click()
        page.get_by_text("pinned", exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Browser, source: FaultServer, tmp_path: Path, scheme: str) -> None:
    """Nothing is wider than a small screen, and all text stands out from what is behind it (WCAG 2.2, 1.4.3)."""
    with serving(source, tmp_path) as server:
        httpx.get(f"{server.url}/org/model/resolve/main/model.safetensors")
        httpx.post(f"{server.url}/api/asyncfetch/jobs", json={"source": "org/absent", "include": ["x" * 300]})
        with page_of(browser, color_scheme=scheme, viewport={"width": 320, "height": 800}) as page:
            page.goto(server.url)
            page.get_by_role("button", name="Pin org/model").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 320
            contrasts = page.evaluate(_CONTRASTS)
            assert len(contrasts) > 30
            assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


_CONTRASTS = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => numbers(text).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    const own = getComputedStyle(element).backgroundColor;
    return numbers(own)[3] === 0 ? behind(element.parentElement) : own;
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    const name = `${element.tagName} ${element.className} ${element.textContent.slice(0, 20)}`;
    found[name] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
  return found;
}"""
