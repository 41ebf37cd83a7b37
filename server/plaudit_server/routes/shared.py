"""What every endpoint takes and gives: services, roles, pages, documented errors."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request

from plaudit.wire.base import ErrorBody, Page
from plaudit_server.auth import Principal, allow
from plaudit_server.guarded import GuardedRoute
from plaudit_server.limits import Kind
from plaudit_server.services import Services

T = TypeVar("T")

_WORDS = {
    400: "the body could not be read",
    401: "no key, or a wrong one",
    403: "the key's roles do not allow it",
    404: "there is no such thing",
    408: "the body did not arrive in time",
    409: "it contradicts the present state, or the Idempotency-Key was used otherwise",
    410: "erased, or never stored",
    412: "If-Match does not name the present state",
    413: "the body is too large",
    415: "not JSON, or compressed",
    422: "a value is not acceptable: `param` names it",
    429: "too many requests: see Retry-After",
    431: "address and headers are too large",
    502: "the engine failed",
    503: "not ready, or too busy: see Retry-After",
    507: "the disk is full",
}
_ALWAYS = (400, 401, 403, 408, 413, 415, 422, 429, 431, 503, 507)
_REFERENCE = f"#/components/schemas/{ErrorBody.__name__}"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for the errors that an endpoint can answer with, beside those that any can."""
    told: dict[int | str, dict[str, Any]] = {
        status: {"description": _WORDS[status], "content": {"application/json": {"schema": {"$ref": _REFERENCE}}}}
        for status in sorted({*_ALWAYS, *statuses})
    }
    # One of them puts the model among the components. FastAPI builds a validator for each model that it is given, and
    # 800 of those were more than half of the time that it takes to make an app.
    told[_ALWAYS[0]] = {"description": _WORDS[_ALWAYS[0]], "model": ErrorBody}
    return told


def guarded_router(tag: str) -> APIRouter:
    """A router whose every endpoint needs a key."""
    return APIRouter(route_class=GuardedRoute, tags=[tag], responses=errors())


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


S = Annotated[Services, Depends(_services)]
"""The app's parts."""

Chatter = Annotated[Principal, allow("chat")]
Rater = Annotated[Principal, allow("feedback")]
Reader = Annotated[Principal, allow("viewer", "operator")]
Viewer = Annotated[Principal, allow("viewer", "operator", "trainer")]
Operator = Annotated[Principal, allow("operator")]
Trainer = Annotated[Principal, allow("trainer")]
Admin = Annotated[Principal, allow("admin")]
Anybody = Annotated[Principal, allow("chat", "feedback", "viewer", "operator", "trainer")]

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=128, description="`next` of the page before")]


def page(items: list[T], *, has_more: bool, last_id: str | None) -> Page[T]:
    """A list in OpenAI's shape."""
    return Page(data=items, has_more=has_more, next=last_id if has_more else None)


@dataclass(frozen=True, slots=True)
class EndUser:
    """Whose request it is. `named`: the request said so; else `hashed` stands for the API key."""

    hashed: str
    named: bool


def end_user(services: Services, principal: Principal, request: Request, *named: str | None) -> EndUser:
    """Who is meant: the first name given, else `x-session-id`, else the key itself."""
    for name in (*named, request.headers.get("x-session-id", "").strip()[:512]):
        if name:
            return EndUser(services.hash_user(name), named=True)
    return EndUser(services.hash_key(principal.key_id), named=False)


def spend(services: Services, request: Request, kind: Kind, user: EndUser) -> None:
    """Count a request against its end user's limit; nobody named is the key, whose own limit was asked already.

    Raises:
        RateLimited: it is too much.
    """
    if user.named:
        services.limits.spend(kind, "user", user.hashed, request.state.answer_headers)
