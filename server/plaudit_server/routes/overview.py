"""The loop at a glance, once or live, and the statistics of votes."""

from functools import partial
from typing import Annotated, Any

from fastapi import Query, Request

from plaudit.wire.base import Label, Moment, VersionName
from plaudit.wire.feedback import DEFAULT_KEY
from plaudit.wire.overview import Overview, VoteStatistics
from plaudit_server import views
from plaudit_server.auth import authenticate
from plaudit_server.domain.moments import DAY_MS, now_ms, to_moment, to_ms
from plaudit_server.errors import Forbidden, Unprocessable
from plaudit_server.overview import look
from plaudit_server.routes.shared import Reader, S, errors, guarded_router
from plaudit_server.sse import EventStream
from plaudit_server.store import overview as store

router = guarded_router("overview")

MAX_POINTS = 2000
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events, named after the parts of an overview",
        "content": {"text/event-stream": {}},
    }
}


@router.get("/v1/overview", summary="How the loop stands")
async def get_overview(services: S, principal: Reader) -> Overview:
    """Who serves, what waits to be learnt, the newest run, the last refusal, the rollout; one read of the database."""
    return await look(services)


@router.get(
    "/v1/live",
    status_code=200,
    responses=errors() | _STREAM,
    response_class=EventStream,
    summary="How the loop stands, live",
)
async def live(request: Request, services: S, principal: Reader) -> EventStream:
    """Server-sent events: each part of the overview, then each part that changed, as `{part: …}`.

    It ends by itself after `PLAUDIT_MAX_STREAM_S`, and with an event `error` within 15 s of the key's end: connect
    again.
    """

    async def welcome() -> None:
        again = await authenticate(request)
        if not again.may({"viewer", "operator"}):
            raise Forbidden(code="missing_role")

    services.live.check_room()
    events = services.live.listen(partial(look, services), welcome)
    return EventStream(events, {}, limit_s=services.settings.max_stream_s, cut_off=lambda: b"")


@router.get("/v1/statistics/votes", summary="Votes by version over time")
async def vote_statistics(
    *,
    services: S,
    principal: Reader,
    key: Annotated[Label, Query()] = DEFAULT_KEY,
    version: Annotated[VersionName | None, Query()] = None,
    since: Annotated[Moment | None, Query(description="30 days ago, unless given")] = None,
    bucket_seconds: Annotated[int, Query(ge=60, le=31_536_000)] = 86_400,
) -> VoteStatistics:
    """Thumbs up and down of each version, with Wilson's 95 % interval, together and by stretches of time (UTC)."""
    now = now_ms()
    since_ms = now - 30 * DAY_MS if since is None else to_ms(since)
    if (now - since_ms) / (bucket_seconds * 1000) > MAX_POINTS:
        raise Unprocessable(
            f"That would be more than {MAX_POINTS} points a version: ask for longer stretches.", param="bucket_seconds"
        )
    await services.answering.all_written()  # an early vote learns its version from its answer's row
    rows = await services.database.read(
        lambda conn: store.votes_over_time(
            conn, key=key, version=version, since_ms=since_ms, bucket_ms=bucket_seconds * 1000
        )
    )
    return VoteStatistics(
        key=key, since=to_moment(since_ms), bucket_seconds=bucket_seconds, versions=views.version_votes(rows)
    )
