"""`<plaudit-thumbs>` in real Chromium, on a page of another origin, against the real server with the fake engine."""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support import server as support

playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")

ROOT = Path(__file__).parents[2]
WIDGET = ROOT / "clients" / "widget"
CHROMIUM = os.environ.get("PLAUDIT_TEST_CHROMIUM") or shutil.which("chromium")

AXE = WIDGET / "node_modules" / "axe-core" / "axe.min.js"

HOSTILE = "<script>window.hit=1</script><img src=x onerror=window.hit=1>=cmd|'x'\u202etxt"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The demo on an origin of its own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install -y chromium, or name one in PLAUDIT_TEST_CHROMIUM")
    subprocess.run([ROOT / "clients" / "build.sh"], check=True, timeout=540)
    handler = functools.partial(Quiet, directory=str(WIDGET))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/demo/index.html"
        server.shutdown()
        thread.join()


@contextlib.asynccontextmanager
async def opened(pages: str, url: str, harness: support.Harness) -> AsyncIterator[tuple[Any, str]]:
    """The demo page with a fresh answer's token in it, and that answer's id."""
    body = {"messages": support.HELLO, "user": "ada"}
    answer = await harness.admin.post("/v1/chat/completions", json=body)
    response_id = answer.json()["id"]
    query = {"base-url": url, "response-id": response_id, "token": answer.headers["x-feedback-token"]}
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page()
            page.wrong = []
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
            await page.goto(f"{pages}?{urlencode(query)}")
            yield page, response_id
        finally:
            await browser.close()


async def stored(harness: support.Harness, response_id: str) -> list[dict[str, Any]]:
    found = await harness.admin.get("/v1/feedback", params={"response_id": response_id})
    votes: list[dict[str, Any]] = found.json()["data"]
    return votes


async def test_vote_reasons_comment_and_back_by_keyboard(tmp_path: Path, pages: str) -> None:
    async with (
        support.serving(tmp_path) as harness,
        support.listening(harness.app) as url,
        opened(pages, url, harness) as (page, response_id),
    ):
        plain = page.locator("#plain")
        status = plain.get_by_role("status")
        await plain.get_by_role("button", name="Bad answer").focus()
        await page.keyboard.press("Enter")
        await playwright.expect(status).to_have_text("Thank you. Your vote is counted.")
        [vote] = await stored(harness, response_id)
        assert (vote["value"], vote["revision"], vote["version"]) == (-1, 1, "base")

        await plain.get_by_role("button", name="Too long").focus()
        await page.keyboard.press("Space")
        await plain.get_by_role("textbox").fill(HOSTILE)
        await plain.get_by_role("button", name="Send").press("Enter")
        await playwright.expect(status).to_have_text("Thank you for the details.")
        [vote] = await stored(harness, response_id)
        assert (vote["value"], vote["tags"], vote["revision"]) == (-1, ["too-long"], 2)
        assert vote["comment"].startswith("<script>window.hit=1</script>")

        thumb = plain.get_by_role("button", name="Bad answer", pressed=True)
        await playwright.expect(thumb).to_be_focused()
        await page.keyboard.press("Enter")
        await playwright.expect(status).to_have_text("Your vote is taken back.")
        assert (await stored(harness, response_id))[0]["retracted"]
        assert await page.evaluate("window.hit") is None
        assert page.wrong == []


async def test_a_used_token_themes_and_languages(tmp_path: Path, pages: str) -> None:
    async with (
        support.serving(tmp_path) as harness,
        support.listening(harness.app) as url,
        opened(pages, url, harness) as (page, response_id),
    ):
        themed, chinese = page.locator("#themed"), page.locator("#chinese")
        await themed.get_by_role("button", name="Good answer").click()
        await playwright.expect(themed.get_by_role("status")).to_have_text("Thank you. Your vote is counted.")
        radius = await themed.get_by_role("button", name="Good answer").evaluate(
            "b => getComputedStyle(b).borderRadius"
        )
        assert radius == "999px"
        await chinese.get_by_role("button", name="不好的回答").click()
        await playwright.expect(chinese.get_by_role("status")).to_have_text("此回答已经评价过了。")
        assert [vote["value"] for vote in await stored(harness, response_id)] == [1]
        await themed.evaluate("(made, text) => made.setAttribute('reasons-up', `x=${text}`)", HOSTILE)
        await playwright.expect(themed.get_by_text("onerror=window.hit=1")).to_be_visible()
        assert await page.evaluate("window.hit") is None
        await themed.get_by_role("button", name="Good answer", pressed=True).click()
        await playwright.expect(themed.get_by_role("status")).to_have_text("Your vote is taken back.")


async def test_axe_finds_nothing(tmp_path: Path, pages: str) -> None:
    async with (
        support.serving(tmp_path) as harness,
        support.listening(harness.app) as url,
        opened(pages, url, harness) as (page, _),
    ):
        await page.locator("#plain").get_by_role("button", name="Bad answer").click()
        await page.locator("#plain").get_by_role("button", name="Wrong").click()
        await page.evaluate(AXE.read_text(encoding="utf-8"))
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            found = await page.evaluate("async () => (await axe.run()).violations")
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == [], scheme
