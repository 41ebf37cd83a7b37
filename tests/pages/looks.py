"""How a page looks: to a person later, to axe at once."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

SHOTS = Path(__file__).parent / "screenshots"
AXE = Path(__file__).parents[2] / "clients" / "web" / "node_modules" / "axe-core" / "axe.min.js"


def shoot(page: Page, name: str, *, whole: bool = False) -> None:
    """Leave a screenshot, of the whole page where it is longer than the window."""
    SHOTS.mkdir(exist_ok=True)
    window = page.viewport_size
    if whole and window:
        page.set_viewport_size({**window, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.screenshot(path=SHOTS / f"{name}.png")
    if window:
        page.set_viewport_size(window)


def violations(page: Page) -> list[Any]:
    """What axe objects to."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
