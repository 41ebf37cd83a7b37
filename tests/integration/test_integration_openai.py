"""Feedback attached to answers of the official `openai` package, both clients, against the real app."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from plaudit import InvalidRequestError, NotFoundError
from plaudit.integrations.openai import arm, feedback_token, plaudit_for, response_id, version
from tests.support.server import Harness, listening, serving

QUESTION: list[Any] = [{"role": "user", "content": "Which version are you?"}]


def secret(server: Harness) -> str:
    found: str = server.admin.headers["authorization"].removeprefix("Bearer ")
    return found


def rate_blocking(url: str, key: str) -> list[str]:
    """A completion, its second choice and a stream are rated; the ids."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client, plaudit_for(client) as plaudit:
        asked: dict[str, Any] = {"model": "policy", "messages": QUESTION, "user": "ada"}
        answer = client.chat.completions.create(**asked, n=2)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        ids = [response_id(answer), response_id(answer, choice=1), response_id(chunks[-1])]
        for each in ids:
            assert plaudit.feedback.rate(each, "up", end_user="ada").version == "base"
        assert (version(answer), version(chunks[0])) == ("base", "base")
        with pytest.raises(NotFoundError):
            plaudit.feedback.rate(ids[0], "down", end_user="mallory")
        return ids


async def test_the_blocking_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        ids = await asyncio.to_thread(rate_blocking, url, secret(server))
        kept = (await server.admin.get("/v1/feedback")).json()["data"]
        assert {row["response_id"] for row in kept} == set(ids)
        assert len(set(ids)) == 3


async def test_the_async_client_and_what_headers_tell(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        listening(server.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret(server), max_retries=0) as client,
        plaudit_for(client) as plaudit,
    ):
        raw = await client.chat.completions.with_raw_response.create(model="policy", messages=QUESTION)
        assert response_id(raw) == raw.parse().id
        assert (version(raw), arm(raw)) == ("base", "stable")
        token = feedback_token(raw)
        assert token is not None
        assert (await plaudit.feedback.by_token(token, "down")).response_id == response_id(raw)

        opened = client.chat.completions.with_streaming_response.create(model="policy", messages=QUESTION, stream=True)
        async with opened as streamed:
            chunks = [chunk async for chunk in await streamed.parse()]
            assert (version(streamed), feedback_token(streamed) is not None) == ("base", True)
        stream = await client.chat.completions.create(model="policy", messages=QUESTION, stream=True)
        assert version(stream) == "base"
        await stream.close()
        kept = await plaudit.feedback.rate(response_id(chunks[0]), None)
        assert kept.retracted


@pytest.mark.parametrize("answer", [None, object(), {"id": "chatcmpl-x"}])
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidRequestError):
        response_id(answer)
