"""The bare passthrough of benchmarks/gateway.py: FastAPI and aiohttp, nothing kept, nobody asked for a key."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse


def make_app(upstream: str) -> FastAPI:
    """An app that hands everything on."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/healthz")
    async def health() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        headers = {"Content-Type": "application/json"}
        asked = await app.state.session.post(upstream + "/v1/chat/completions", data=body, headers=headers)
        if not asked.content_type.startswith("text/event-stream"):
            return Response(await asked.read(), media_type="application/json")

        async def events() -> AsyncIterator[bytes]:
            async for data in asked.content.iter_any():
                yield data

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(
        make_app(args.upstream), host="127.0.0.1", port=args.port, access_log=False, log_level="warning", loop="uvloop"
    )
