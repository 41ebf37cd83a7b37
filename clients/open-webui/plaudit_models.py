"""
title: Plaudit models
author: Plaudit
version: 0.1.0
required_open_webui_version: 0.10.0
description: Serves Plaudit's models, and marks each answer with the message that it becomes, so that it can be rated.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel, Field

MARK = "open_webui_message"
"""The key of Plaudit's `metadata` that holds Open WebUI's message id. `plaudit_ratings.py` looks for it."""
PASSED_ON = (
    *("stream", "stream_options", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "response_format", "tools", "tool_choice"),
)
"""What of Open WebUI's request is OpenAI's; the rest is its own affair."""
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")


class Pipe:
    """An Open WebUI pipe function."""

    class Valves(BaseModel):
        """What an administrator sets."""

        url: str = Field(default="http://127.0.0.1:8000", description="Plaudit's address, without /v1")
        key: str = Field(
            default="",
            description="A key with the role chat",
            json_schema_extra={"input": {"type": "password"}},
        )
        models: str = Field(default="policy", description="Models to offer, such as policy,policy@base")
        learn: bool = Field(
            default=True, description="On: the server decides what it may learn from. Off: it may not learn from these"
        )
        timeout_s: float = Field(default=600, description="Seconds to wait for an answer, or for its next piece")

    def __init__(self) -> None:
        self.valves = self.Valves()

    def pipes(self) -> list[dict[str, str]]:
        """The models on offer."""
        names = [name.strip() for name in self.valves.models.split(",") if name.strip()]
        return [{"id": name, "name": f"Plaudit {name}"} for name in names]

    async def pipe(
        self,
        body: dict[str, Any],
        __user__: dict[str, Any] | None = None,
        __message_id__: str | None = None,
        __task__: str | None = None,
    ) -> Any:
        """One answer: a stream of events, or a completion."""
        asked = self.request(body, (__user__ or {}).get("id"), __message_id__, __task__)
        if asked.get("stream"):
            return self._stream(asked)
        async with self._client() as client:
            answer = await client.post("/v1/chat/completions", json=asked)
        _check(answer)
        return answer.json()

    def request(
        self, body: dict[str, Any], user: str | None, message_id: str | None, task: str | None
    ) -> dict[str, Any]:
        """What to ask Plaudit. Titles, tags and suggestions, which Open WebUI has written by the same model, are not
        answers to anybody: they are not stored, hence neither rated nor learnt from."""
        messages = [{key: each[key] for key in MESSAGE_KEYS if key in each} for each in body["messages"]]
        asked = {key: body[key] for key in PASSED_ON if body.get(key) is not None}
        asked |= {"model": body["model"].partition(".")[2], "messages": messages}
        if user:
            asked["user"] = user
        if task or not message_id:
            return asked | {"store": False}
        return asked | {"metadata": {MARK: message_id}} | ({} if self.valves.learn else {"train": False})

    async def _stream(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        async with self._client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            if answer.is_error:
                await answer.aread()
            _check(answer)
            async for line in answer.aiter_lines():
                if line.startswith("data:") and line != "data: [DONE]":  # Open WebUI says that itself
                    yield line

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.valves.key}"}
        return httpx.AsyncClient(
            base_url=self.valves.url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=self.valves.timeout_s
        )


def _check(answer: httpx.Response) -> None:
    """A RuntimeError that tells the user what Plaudit said, where it refused."""
    if answer.is_success:
        return
    try:
        said = answer.json()["error"]["message"]
    except (json.JSONDecodeError, KeyError, TypeError):
        said = answer.text[:200]
    raise RuntimeError(f"Plaudit refused ({answer.status_code}): {said}")
