"""Where the server is and which key to show, from arguments, environment and the local run's key file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from plaudit.errors import ConfigurationError

DEFAULT_PORT = "8000"
KEY_FILE = "admin.key"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a key.

    Args:
        base_url: without a trailing slash and without `/v1`.
        api_key: the bearer token; None sends none.
        key_source: where the key came from, for people: an argument, a variable, a file.
        local: whether the address is this machine's loopback.
    """

    base_url: str
    api_key: str | None
    key_source: str | None
    local: bool


def find_endpoint(
    base_url: str | None = None, api_key: str | None = None, env: Mapping[str, str] | None = None
) -> Endpoint:
    """Resolve what the caller left out.

    Address: argument, `PLAUDIT_URL`, else `PLAUDIT_HOST` and `PLAUDIT_PORT` as the local run reads them.
    Key: argument, `PLAUDIT_API_KEY`, else `admin.key` in `PLAUDIT_DATA` (default `data`). The file holds full power
    over the local server, so it is read for a loopback address only and never sent anywhere else.

    Raises:
        ConfigurationError: the address or the key cannot be used.
    """
    env = os.environ if env is None else env
    url = _checked_url(base_url or env.get("PLAUDIT_URL") or _local_url(env))
    local = _is_loopback(urlsplit(url).hostname or "")
    key, source = _find_key(api_key, env, local=local)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError(
            f"The key from {source} is not one: it has spaces, line breaks or non-ASCII characters."
        )
    return Endpoint(url, key, source, local)


def data_folder(env: Mapping[str, str] | None = None) -> Path:
    """The local run's data folder."""
    return Path((os.environ if env is None else env).get("PLAUDIT_DATA") or "data")


def _local_url(env: Mapping[str, str]) -> str:
    host = env.get("PLAUDIT_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # listened on, not connected to
    return f"http://{f'[{host}]' if ':' in host else host}:{env.get('PLAUDIT_PORT') or DEFAULT_PORT}"


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or any(c.isspace() for c in url.strip()):
        raise ConfigurationError(f"{url!r} is not a server's address. Give one such as http://127.0.0.1:8000.")
    return url.strip().rstrip("/").removesuffix("/v1")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _find_key(api_key: str | None, env: Mapping[str, str], *, local: bool) -> tuple[str | None, str | None]:
    if api_key:
        return api_key, "the argument"
    if env.get("PLAUDIT_API_KEY"):
        return env["PLAUDIT_API_KEY"].strip(), "PLAUDIT_API_KEY"
    path = data_folder(env) / KEY_FILE
    if not local:
        return None, None
    try:
        return path.read_text(encoding="utf-8").strip() or None, str(path)
    except (OSError, UnicodeDecodeError):
        return None, None
