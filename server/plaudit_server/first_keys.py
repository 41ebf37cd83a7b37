"""What the first start of a server leaves in its data folder: the key of the hashes, and the first API keys.

Several servers on one database have a data folder each. They must hash with one key, which the database knows by its
fingerprint; and one of them alone makes the first API keys.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from plaudit.wire.ops import Role
from plaudit_server.auth import read_secret, write_secret
from plaudit_server.domain.moments import now_ms
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings
from plaudit_server.store import Connection, facts, keys
from plaudit_server.store.database import Database

_HASH_KEY = "hash key"
"""Under this name the database knows the fingerprint of the key of our hashes."""

_MINTED_AT_START: tuple[tuple[str, Role], ...] = (("admin", "admin"), ("trainer", "trainer"))


async def hash_key(settings: Settings, database: Database) -> bytes:
    """The key of our hashes: made once for a database; with another one, every user would be a stranger.

    Raises:
        SettingError: the file cannot be read, or it is not the key that the database knows.
    """
    path = settings.hash_key_file or settings.data / "hash.key"
    known = await database.read(lambda conn: facts.get(conn, _HASH_KEY))
    if known is None and settings.hash_key_file is None and not path.exists():
        write_secret(path, secrets.token_hex(32))
    mend = "copy hash.key from the data folder of the database's first server, or name it with PLAUDIT_HASH_KEY_FILE"
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}, the key of the hashes, cannot be read ({error}): {mend}, or restore it") from error
    mine = hmac.new(secret, _HASH_KEY.encode(), hashlib.sha256).hexdigest()
    if await database.write(lambda conn: facts.remember(conn, _HASH_KEY, mine)) != mine:
        raise SettingError(f"{path} is not the key that this database's end users were hashed with: {mend}")
    return secret


async def mint_first_keys(folder: Path, database: Database) -> None:
    """Leave a key of an admin and one of a trainer in the data folder, at the first start."""
    for name, role in _MINTED_AT_START:
        known = read_secret(folder / f"{name}.key")
        if known is None or not await _is_live(database, known):
            await _mint(folder / f"{name}.key", name, role, database)


async def _is_live(database: Database, secret: str) -> bool:
    return await database.read(lambda conn: keys.find(conn, secret)) is not None


async def _mint(path: Path, name: str, role: Role, database: Database) -> None:
    """Make a key, unless another server on the same database made one: once is enough."""
    secret = keys.new_secret()

    async def elsewhere(conn: Connection) -> bool:
        return database.shared and await keys.held(conn, role)

    async def create(conn: Connection) -> bool:
        if await elsewhere(conn):
            return False
        await keys.create(conn, name=name, roles=[role], now_ms=now_ms(), secret=secret)
        return True

    if await database.read(elsewhere):
        return
    # The file first: a key in the database that nobody has the secret of could never be used, nor found out.
    write_secret(path, secret)
    if not await database.write(create):
        path.unlink()  # noqa: ASYNC240  # at start, before anybody is served
