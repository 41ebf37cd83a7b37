"""Feedback on the answers of the official `openai` client, pointed at a Plaudit server.

    from openai import OpenAI
    from plaudit.integrations.openai import plaudit_for, response_id

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="plk_…")
    answer = client.chat.completions.create(model="policy", messages=[…], user="ada")
    with plaudit_for(client) as plaudit:
        plaudit.feedback.rate(response_id(answer), "up", end_user="ada")

Of a streamed answer any chunk will do. `with_raw_response` also shows the headers: `feedback_token`, `version`, `arm`.
"""

import json
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from plaudit._chat import choice_id, version_of
from plaudit.errors import InvalidRequestError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from plaudit import AsyncPlaudit, Plaudit


@runtime_checkable
class Answer(Protocol):
    """A completion or a chunk of one."""

    id: str
    model: str


@overload
def plaudit_for(client: "OpenAI", **options: Any) -> "Plaudit": ...
@overload
def plaudit_for(client: "AsyncOpenAI", **options: Any) -> "AsyncPlaudit": ...
def plaudit_for(client: "OpenAI | AsyncOpenAI", **options: Any) -> "Plaudit | AsyncPlaudit":
    """A Plaudit client of the same server with the same key: blocking or asynchronous as `client` is.

    It has connections of its own and is to be closed. `options` are those of `Plaudit`.
    """
    from openai import AsyncOpenAI

    from plaudit import AsyncPlaudit, Plaudit

    address = str(client.base_url)
    if isinstance(client, AsyncOpenAI):
        return AsyncPlaudit(address, client.api_key, **options)
    return Plaudit(address, client.api_key, **options)


def response_id(answer: Any, choice: int = 0) -> str:
    """The id under which an answer is rated.

    Args:
        answer: a completion, a chunk of one, or what `with_raw_response` gave.
        choice: which of the n answers, from 0.

    Raises:
        InvalidRequestError: it has no id, or one that Plaudit did not make: is `base_url` Plaudit's?
    """
    found = answer.id if isinstance(answer, Answer) else _body(answer).get("id")
    if not (isinstance(found, str) and found.startswith("chatcmpl-")):
        raise InvalidRequestError(f"there is no Plaudit answer in {type(answer).__name__}: is base_url Plaudit's?")
    return choice_id(found, choice)


def version(answer: Any) -> str | None:
    """The version that spoke, such as `v42`: of a completion, a chunk, a raw response or a stream."""
    return version_of(answer.model) if isinstance(answer, Answer) else _header(answer, "x-model-version")


def arm(raw: Any) -> str | None:
    """`stable`, `canary` or `pinned`: of a raw response or a stream. A parsed completion no longer has headers."""
    return _header(raw, "x-rollout-arm")


def feedback_token(raw: Any) -> str | None:
    """The token under which a browser may rate the answer: of a raw response or a stream."""
    return _header(raw, "x-feedback-token")


def _header(raw: Any, name: str) -> str | None:
    """A header of a raw response, or of the response that a stream reads."""
    headers = getattr(raw, "headers", None)
    if headers is None:
        headers = getattr(getattr(raw, "response", None), "headers", {})
    found: str | None = headers.get(name)
    return found


def _body(raw: Any) -> dict[str, Any]:
    """The body of a raw response that was read; empty where there is none."""
    try:
        body = json.loads(raw.http_response.text)
    except (AttributeError, ValueError, RuntimeError):  # no response, no JSON, a stream that was not read
        return {}
    return body if isinstance(body, dict) else {}
