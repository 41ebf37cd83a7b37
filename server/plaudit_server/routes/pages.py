"""The pages for people, as `make pages` built them: read from a folder, with headers that let them do little else."""

import gzip
import mimetypes
import re
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from plaudit_server.errors import NotFound

BUILT = Path(__file__).parents[1] / "pages"
"""Where the build of clients/web puts them; the wheel ships them."""

HOW = "The pages are not built: run `make pages` in Plaudit's folder and load this page again.\n"

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",  # no address: an image in an answer would tell its host that it was read
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}
_ASSET = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_FOREVER = "public, max-age=31536000, immutable"  # the name of an asset changes with its content


def pages_router(folder: Path = BUILT) -> APIRouter:
    """Routes to the pages in `folder`. They need no key: what they ask of the API does."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def chat(request: Request) -> Response:
        """The chat page."""
        return _page(folder / "index.html", request)

    @router.get("/console")
    def console(request: Request) -> Response:
        """The operators' console."""
        return _page(folder / "console.html", request)

    @router.get("/assets/{name}")
    def asset(name: str, request: Request) -> Response:
        """A script or a style sheet of a page."""
        path = folder / "assets" / name
        if not _ASSET.fullmatch(name) or not path.is_file():
            raise NotFound(f"There is no asset {name[:64]!r}.", code="unknown_url")
        return _file(path, request, cache=_FOREVER)

    return router


def _page(path: Path, request: Request) -> Response:
    if not path.is_file():
        return PlainTextResponse(HOW, status_code=404)
    return _file(path, request, cache="no-cache")


def _file(path: Path, request: Request, *, cache: str) -> Response:
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = {**_HEADERS, "cache-control": cache}
    content = path.read_bytes()
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        content = _packed(content)
    return Response(content, media_type=media_type, headers=headers)


@lru_cache(maxsize=32)
def _packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
