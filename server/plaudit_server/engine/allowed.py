"""What may be asked of vLLM at all.

vLLM's server has endpoints that stop it, load weights into it or run code in its workers, and none of them asks for a
key. Ours is its only client; the paths below are all that this client will ever send, whatever a caller of ours says.
"""

import httpx

from plaudit_server.errors import EngineError

ALLOWED = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/collective_rpc"),
    }
)


class OnlyAllowed(httpx.AsyncBaseTransport):
    """A transport that refuses every other request before anything of it is sent.

    Args:
        transport: what sends.
        base_url: of the engine; the allowed paths lie below its path.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, base_url: str) -> None:
        self._transport = transport
        below = httpx.URL(base_url).raw_path.decode("ascii").rstrip("/")
        self._allowed = {(method, below + path) for method, path in ALLOWED}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request that is allowed.

        Raises:
            EngineError: it is not.
        """
        # The raw path: what a server makes of `/v1/../pause` or `%70ause` is not left to chance.
        path = request.url.raw_path.decode("ascii")
        if (request.method, path) not in self._allowed:
            raise EngineError(f"{request.method} {path[:64]} is nothing that the engine may be asked.")
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close what is behind."""
        await self._transport.aclose()
