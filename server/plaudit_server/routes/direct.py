"""A route without FastAPI's dependency machinery, for the one endpoint that everything else waits for.

It is declared as any other, so that the OpenAPI document, the roles and the contract tests see no difference; only how
it is called differs: the body is validated by its model and the endpoint called, where FastAPI would walk the tree of
dependencies and open two exit stacks, at a tenth of a millisecond of processor time a chat.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from plaudit_server.auth import authorized
from plaudit_server.guarded import GuardedRoute

Endpoint = Callable[[Any, Request, Any, Any], Coroutine[Any, Any, Response]]


class _CalledDirectly(APIRoute):
    """Takes FastAPI's place below `GuardedRoute`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the roles, validate, call. The endpoint takes (body, request, services, principal)."""
        endpoint: Endpoint = self.endpoint
        model = _body_model(self)
        scopes = SecurityScopes(_roles(self))

        async def handler(request: Request) -> Response:
            principal = await authorized(scopes, request, None)
            return await endpoint(_validated(model, request), request, request.app.state.services, principal)

        return handler


class DirectRoute(GuardedRoute, _CalledDirectly):
    """Guarded as every route, and called directly."""


def _body_model(route: APIRoute) -> type[BaseModel]:
    (field,) = route.dependant.body_params
    model: type[BaseModel] = field.field_info.annotation  # type: ignore[assignment]  # the only parameter of the body
    return model


def _roles(route: APIRoute) -> list[str]:
    """The roles that `auth.allow` declared."""
    (found,) = [one.oauth_scopes for one in route.dependant.dependencies if one.call is authorized]
    return list(found or ())


def _validated(model: type[BaseModel], request: Request) -> BaseModel:
    try:
        body = request._json
    except AttributeError:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}]) from None
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
