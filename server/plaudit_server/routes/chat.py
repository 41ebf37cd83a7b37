"""Chat completions, their stored form, and the models that may be asked for."""

from functools import partial
from typing import Annotated, Any

from fastapi import Query, Request, Response

from plaudit.wire.base import Moment, Page, VersionName
from plaudit.wire.chat import ChatRequest, Deleted, ModelCard, StoredCompletion
from plaudit.wire.feedback import DEFAULT_KEY, TOKEN_SECONDS
from plaudit_server import sse, views
from plaudit_server.auth import Principal
from plaudit_server.chat import Chat, check_fits
from plaudit_server.domain.feedback import check_target
from plaudit_server.domain.moments import now_ms, to_ms
from plaudit_server.domain.records import Interaction
from plaudit_server.domain.traffic import in_share
from plaudit_server.errors import BadRequest, Gone, Unprocessable
from plaudit_server.routes.direct import DirectRoute
from plaudit_server.routes.shared import (
    After,
    Anybody,
    Chatter,
    Limit,
    Operator,
    Reader,
    S,
    end_user,
    errors,
    guarded_router,
    page,
    spend,
)
from plaudit_server.services import Services
from plaudit_server.store import Connection, interactions
from plaudit_server.store import feedback as feedback_store

router = guarded_router("chat")

_CONSENT = {"true": True, "1": True, "granted": True, "false": False, "0": False, "denied": False}


async def create_completion(asked: ChatRequest, request: Request, services: S, principal: Chatter) -> Any:
    """OpenAI's chat completions, streaming and not; fields not listed go to the engine unread."""
    chat = await _chat(asked, request, services, principal)
    services.answering.admit(chat)
    if asked.stream:
        events = await services.answering.stream(chat)
        cut_off = partial(services.answering.cut_off, chat)
        return sse.EventStream(events, chat.headers(), limit_s=services.settings.max_stream_s, cut_off=cut_off)
    answer = await services.answering.whole(chat, lambda: sse.gone(request.receive))
    if answer is None:
        return Response(status_code=499)  # nobody is there to read it
    return sse.json_response(answer, chat.headers())


router.add_api_route(
    "/v1/chat/completions",
    create_completion,
    methods=["POST"],
    responses=errors(404, 502),
    summary="Chat",
    route_class_override=DirectRoute,
)


async def _chat(asked: ChatRequest, request: Request, services: Services, principal: Principal) -> Chat:
    user = end_user(services, principal, request, asked.safety_identifier, asked.user)
    spend(services, request, "chat", user)
    if not services.settings.engine_urls:  # others' engines know their own lengths
        check_fits(asked, services.settings.engine_max_model_len)
    route = await services.serving.routing.route(asked.model, user.hashed)
    chat = Chat(
        request=asked,
        route=route,
        fingerprint=services.serving.catalog.fingerprint(route.version),
        request_id=request.state.request_id,
        key_id=principal.key_id,
        end_user=user.hashed,
        consent=_consent(asked, request, services),
        started=request.state.started,
    )
    if chat.stored:
        chat.feedback_token = services.tokens.sign(
            chat.id,
            user.hashed,
            named=user.named,
            keys=(DEFAULT_KEY,),
            expires_at_ms=chat.created_at_ms + TOKEN_SECONDS * 1000,
        )
        # By the model that was asked for: while a rollout divides the users, this user stays on their arm.
        share = services.settings.compare_share
        may_compare = share and principal.may({"feedback"}) and len(chat.response_ids) == 1
        if may_compare and in_share("comparison", chat.id, share):
            chat.compare_with = asked.model
    return chat


def _consent(asked: ChatRequest, request: Request, services: Services) -> bool:
    if asked.train is not None:
        return asked.train
    header = request.headers.get("x-train-consent")
    if header is None:
        return services.settings.consent_default == "granted"
    if header.strip().lower() not in _CONSENT:
        raise BadRequest("x-train-consent is true or false.", param="x-train-consent", code="invalid_header")
    return _CONSENT[header.strip().lower()]


@router.get("/v1/chat/completions", summary="List stored completions")
async def list_completions(
    *,
    services: S,
    request: Request,
    principal: Reader,
    version: Annotated[VersionName | None, Query()] = None,
    user: Annotated[str | None, Query(max_length=128)] = None,
    since: Annotated[Moment | None, Query()] = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[StoredCompletion]:
    """Answers, newest first. `metadata[name]=value` in the query keeps those that carry it."""
    metadata = _metadata_filter(request)
    await services.answering.all_written()
    hashed = services.hash_user(user) if user else None

    async def read(conn: Connection) -> tuple[list[Interaction], bool, dict[str, int]]:
        rows = await interactions.page(
            conn,
            version=version,
            end_user=hashed,
            since_ms=to_ms(since) if since else None,
            metadata=metadata,
            after=after,
            limit=limit,
        )
        return rows.items, rows.has_more, await feedback_store.counts(conn, [row.id for row in rows.items])

    rows, has_more, counts = await services.database.read(read)
    items = [views.stored_completion(row, services.cipher, counts.get(row.id, 0)) for row in rows]
    return page(items, has_more=has_more, last_id=rows[-1].id if rows else None)


def _metadata_filter(request: Request) -> dict[str, str]:
    wanted = {
        name.removeprefix("metadata[")[:-1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(wanted) > 16:
        raise Unprocessable("At most 16 metadata filters.", param="metadata")
    return wanted


@router.get("/v1/chat/completions/{response_id}", responses=errors(404, 410), summary="One stored completion")
async def get_completion(response_id: str, services: S, principal: Reader) -> StoredCompletion:
    """An answer as it was kept."""

    async def read(conn: Connection) -> tuple[Interaction, int]:
        row = await interactions.get(conn, response_id)
        if row is None:
            check_target(response_id, await interactions.fate(conn, response_id), in_flight=False)
            raise Gone(f"{response_id} is gone.")
        return row, (await feedback_store.counts(conn, [response_id])).get(response_id, 0)

    await services.answering.written(response_id)
    row, count = await services.database.read(read)
    return views.stored_completion(row, services.cipher, count)


@router.delete("/v1/chat/completions/{response_id}", responses=errors(404, 410), summary="Erase a stored completion")
async def delete_completion(response_id: str, services: S, principal: Operator) -> Deleted:
    """Erase an answer and what was said about it. Later votes on it get 410."""
    await services.answering.written(response_id)
    speaking = services.answering.is_speaking(response_id)

    async def forget(conn: Connection) -> None:
        check_target(response_id, await interactions.fate(conn, response_id), in_flight=speaking)
        await interactions.forget(conn, response_id, "deleted", now_ms=now_ms())

    await services.database.write(forget)
    return Deleted(id=response_id, object="chat.completion.deleted")


@router.get("/v1/models", summary="Models that may be asked for")
async def list_models(services: S, principal: Anybody) -> Page[ModelCard]:
    """`policy`, the aliases, and every version that is ready."""
    return Page(data=await services.serving.routing.models())


@router.get("/v1/models/{model}", responses=errors(404), summary="One model")
async def get_model(model: str, services: S, principal: Anybody) -> ModelCard:
    """One of `GET /v1/models`."""
    return await services.serving.routing.model(model)
