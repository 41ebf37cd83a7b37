"""A mock of vLLM's chat completions for benchmarks/gateway.py: made-up words at no cost, over TCP or a Unix socket.

Answers `/v1/chat/completions` in vLLM 0.32's layout, with token ids and log-probabilities where asked for, and enough
of the rest (`/health`, `/v1/models`, `/collective_rpc`) to be taken for a replica. Bytes are made once a shape and sent
with one write an event, as a server does that has a token at a time. `--pause-ms` waits between them.
"""

import argparse
import asyncio
import json
import os
import sys
from functools import cache
from typing import Any, cast

import uvloop

WORDS = (" the", " loop", " learns", " from", " votes", " and", " each", " answer")
PROMPT_IDS = list(range(1000, 1045))


def token(number: int) -> dict[str, Any]:
    """One drawn token as vLLM reports it."""
    text = WORDS[number % len(WORDS)]
    return {
        "token": text,
        "logprob": -0.0123456789 * (1 + number % 37),
        "bytes": list(text.encode()),
        "top_logprobs": [],
    }


def dump(value: Any) -> bytes:
    """JSON as pydantic writes it: no spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@cache
def chunks(model: str, count: int, logprobs: bool, ids: bool, usage: bool) -> tuple[bytes, ...]:
    """The events of a stream."""
    head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1764000000, "model": model}

    def event(choices: list[Any], **more: Any) -> bytes:
        return b"data: " + dump({**head, "choices": choices, **more}) + b"\n\n"

    def choice(number: int) -> dict[str, Any]:
        last = number == count - 1
        found: dict[str, Any] = {"index": 0, "delta": {"content": WORDS[number % len(WORDS)]}}
        found |= {"logprobs": {"content": [token(number)]} if logprobs else None}
        found |= {"finish_reason": "length" if last else None} | ({"stop_reason": None} if last else {})
        return found | {"token_ids": [2000 + number] if ids else None}

    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events = [event([first], prompt_token_ids=PROMPT_IDS if ids else None, prompt_text=None)]
    events += [event([choice(number)]) for number in range(count)]
    if usage:
        events.append(event([], usage=used(count)))
    return (*events, b"data: [DONE]\n\n")


def used(count: int) -> dict[str, int]:
    """Usage."""
    return {
        "prompt_tokens": len(PROMPT_IDS),
        "total_tokens": len(PROMPT_IDS) + count,
        "completion_tokens": count,
    }


@cache
def whole(request_id: str, model: str, count: int, logprobs: bool, ids: bool) -> bytes:
    """A whole answer."""
    message = {"role": "assistant", "content": "".join(WORDS[n % len(WORDS)] for n in range(count)), "refusal": None}
    message |= {"annotations": None, "audio": None, "function_call": None, "reasoning": None}
    choice = {"index": 0, "message": message, "finish_reason": "length", "stop_reason": None, "routed_experts": None}
    choice |= {"logprobs": {"content": [token(n) for n in range(count)]} if logprobs else None}
    choice |= {"token_ids": [2000 + n for n in range(count)] if ids else None}
    answer = {"id": request_id, "object": "chat.completion", "created": 1764000000, "model": model}
    answer |= {"choices": [choice], "service_tier": None, "system_fingerprint": None, "usage": used(count)}
    answer |= {"prompt_logprobs": None, "prompt_token_ids": PROMPT_IDS if ids else None, "prompt_text": None}
    return dump(answer | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request after another."""

    def __init__(self, pause_s: float, tokens: int) -> None:
        self.pause_s = pause_s
        self.tokens = tokens
        self.buffer = b""
        self.speaking: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self.room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, _: Exception | None) -> None:
        """They left."""
        if self.speaking is not None:
            self.speaking.cancel()

    def pause_writing(self) -> None:
        """The reader is slow."""
        self.room.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.room.set()

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(head.split(b" ", 2)[1].split(b"?")[0].decode(), body)

    def answer(self, path: str, body: bytes) -> None:
        """One answer."""
        if path.endswith("/chat/completions"):
            self.chat(json.loads(body))
        elif path.endswith("/models"):
            cards = [{"id": name, "object": "model", "owned_by": "mock"} for name in ("base", "mock")]
            self.reply(dump({"object": "list", "data": cards}))
        elif path == "/collective_rpc":
            self.reply(dump({"results": [[]]}))
        else:
            self.reply(b"{}")

    def reply(self, body: bytes) -> None:
        """200 with a JSON body."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def chat(self, asked: dict[str, Any]) -> None:
        """A completion, whole or streamed."""
        options = bool(asked.get("logprobs")), bool(asked.get("return_token_ids"))
        tokens = asked.get("max_tokens") or self.tokens
        if not asked.get("stream"):
            self.reply(whole("chatcmpl-mock", asked["model"], tokens, *options))
            return
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        events = chunks(asked["model"], tokens, *options, usage)
        self.speaking = asyncio.ensure_future(self.speak(events))

    async def speak(self, events: tuple[bytes, ...]) -> None:
        """A stream, one write an event."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head)
        for event in events:
            await self.room.wait()
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        self.transport.write(b"0\r\n\r\n")


async def main() -> None:
    """Serve until killed; says `ready` on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(args.pause_ms / 1000, args.tokens)

    servers = [await loop.create_server(connection, "127.0.0.1", args.port, backlog=1024)]
    if args.uds:
        servers.append(await loop.create_unix_server(connection, args.uds, backlog=1024))
    print(json.dumps({"port": servers[0].sockets[0].getsockname()[1], "pid": os.getpid()}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # whoever started it holds the other end


if __name__ == "__main__":
    uvloop.run(main())
