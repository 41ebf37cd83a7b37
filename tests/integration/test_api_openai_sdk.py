"""The official `openai` package against a real socket, unchanged."""

from pathlib import Path

import httpx
import openai
import pytest

from tests.support.server import Harness, listening, serving

QUESTION = [{"role": "user", "content": "Which version are you?"}]


def sdk(url: str, server: Harness) -> openai.AsyncOpenAI:
    secret = server.admin.headers["authorization"].removeprefix("Bearer ")
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)


async def test_whole_and_streamed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url, sdk(url, server) as client:
        answer = await client.chat.completions.create(model="policy", messages=QUESTION, logprobs=True)  # type: ignore[call-overload]
        assert answer.model == "policy@base"
        assert answer.system_fingerprint == "base"
        assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.content)

        stream = await client.chat.completions.create(model="policy", messages=QUESTION, stream=True)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
        assert chunks[0].system_fingerprint == "base"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
        assert chunks[-1].choices[0].finish_reason == "stop"

        models = [model.id async for model in client.models.list()]
        assert "policy" in models
        kept = await client.chat.completions.retrieve(chunks[0].id)
        assert kept.id == chunks[0].id
        removed = await client.chat.completions.delete(chunks[0].id)
        assert removed.deleted is True


async def test_errors_are_the_packages_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url, sdk(url, server) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-4", messages=QUESTION)  # type: ignore[call-overload]
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.UnprocessableEntityError) as wrong:
            await client.chat.completions.create(model="policy", messages=QUESTION, temperature=9)  # type: ignore[call-overload]
        assert wrong.value.param == "temperature"
        stranger = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="plk_wrong", max_retries=0)
        async with stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
        server.engine.fail_after_tokens = 3
        stream = await client.chat.completions.create(model="policy", messages=QUESTION, stream=True)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="broke down"):
            [chunk async for chunk in stream]


async def test_a_closed_connection_stops_the_engine(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        server.engine.token_delay_s = 0.1
        headers = {"authorization": server.admin.headers["authorization"]}
        body = {"messages": QUESTION, "stream": True}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            await anext(answer.aiter_lines())

        async def stopped() -> bool:
            return len(server.engine.aborted) == 1

        await server.until(stopped)
        await server.services.answering.close()
        (row,) = (await server.admin.get("/v1/chat/completions")).json()["data"]
        assert row["status"] == "aborted"
