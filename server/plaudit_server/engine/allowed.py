"""What may be asked of vLLM at all.

vLLM's server has endpoints that stop it, load weights into it or run code in its workers, and none of them asks for a
key. Ours is its only client; the paths below are all that this client will ever send, whatever a caller of ours says.
"""

from collections.abc import Mapping

from plaudit_server.engine.wire import Reply, ReplyStream, Wire
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
        # In-place swaps. `mode=keep` freezes answers that have begun; vLLM's own default would abort them.
        ("POST", "/pause?mode=keep"),
        ("POST", "/resume"),
        ("POST", "/reset_prefix_cache?reset_running_requests=true"),
    }
)


class OnlyAllowed:
    """A `Wire` that refuses every other request before anything of it is sent.

    Paths are compared letter by letter and sent as they are: what a server makes of `/v1/../pause` or `%70ause` is not
    left to chance.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, limit_s: float | None
    ) -> Reply:
        """See `Wire.send`. Raises EngineError for what is not allowed."""
        _check(method, path)
        return await self._wire.send(method, path, body, headers, limit_s=limit_s)

    async def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> ReplyStream:
        """See `Wire.open`. Raises EngineError for what is not allowed."""
        _check("POST", path)
        return await self._wire.open(path, body, headers)

    async def aclose(self) -> None:
        """Close what is behind."""
        await self._wire.aclose()


def _check(method: str, path: str) -> None:
    if (method, path) not in ALLOWED:
        raise EngineError(f"{method} {path[:64]} is nothing that the engine may be asked.")
