"""The pages as the server hands them out, whether or not they are built here."""

import gzip
import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from plaudit_server.middleware import install_error_handlers
from plaudit_server.routes.pages import BUILT, HOW, pages_router

FIRST_LOAD_BYTES = 200_000


def client(folder: Path) -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(pages_router(folder))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plaudit")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>chat</title>")
    (tmp_path / "console.html").write_text("<title>console</title>")
    (tmp_path / "assets" / "index-abc123.js").write_text("export {};" * 100)
    (tmp_path / "secret.txt").write_text("not a page")
    return tmp_path


async def test_a_page_is_asked_for_anew_and_an_asset_never(built: Path) -> None:
    async with client(built) as browser:
        page, script = await browser.get("/"), await browser.get("/assets/index-abc123.js")
    assert (page.status_code, page.text) == (200, "<title>chat</title>")
    assert page.headers["cache-control"] == "no-cache"
    assert "immutable" in script.headers["cache-control"]
    assert script.headers["content-type"].startswith("text/javascript")
    for answer in (page, script):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_console_is_a_page_of_its_own(built: Path) -> None:
    async with client(built) as browser:
        page = await browser.get("/console")
    assert (page.status_code, page.text) == (200, "<title>console</title>")
    assert page.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/", "/console"])
async def test_no_inline_script_and_no_address_of_an_image_is_allowed(built: Path, path: str) -> None:
    async with client(built) as browser:
        policy = (await browser.get(path)).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "data:"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy


async def test_assets_are_compressed_where_that_is_understood(built: Path) -> None:
    async with client(built) as browser:
        packed = await browser.get("/assets/index-abc123.js", headers={"accept-encoding": "gzip"})
        clear = await browser.get("/assets/index-abc123.js", headers={"accept-encoding": "identity"})
    assert packed.text == clear.text
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in clear.headers
    assert int(packed.headers["content-length"]) < int(clear.headers["content-length"])


@pytest.mark.parametrize(
    "name", ["..%2Fsecret.txt", "%2e%2e/secret.txt", "no-such.js", ".hidden", "%00.js", "index.html"]
)
async def test_nothing_else_is_handed_out(built: Path, name: str) -> None:
    async with client(built) as browser:
        answer = await browser.get(f"/assets/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("path", ["/", "/console"])
async def test_without_built_pages_one_line_says_what_to_do(tmp_path: Path, path: str) -> None:
    async with client(tmp_path) as browser:
        answer = await browser.get(path)
    assert (answer.status_code, answer.text) == (404, HOW)
    assert HOW.count("\n") == 1 and "make pages" in HOW


@pytest.mark.parametrize("page", ["index.html", "console.html"])
def test_the_first_load_is_small_and_all_of_it_from_here(page: str) -> None:
    if not (BUILT / page).is_file():
        pytest.skip("the pages are not built: make pages")
    html = (BUILT / page).read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|https?://", html)
    names = re.findall(r'(?:src|href)="/assets/([^"]+)"', html)
    assert names
    sizes = [len(gzip.compress((BUILT / "assets" / name).read_bytes())) for name in names]
    assert sum(sizes) + len(gzip.compress(html.encode())) <= FIRST_LOAD_BYTES
