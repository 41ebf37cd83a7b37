"""Keys: cached shortly, never negatively; roles; secrets in files."""

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from plaudit_server import auth
from plaudit_server.auth import KeyRing, Principal, read_secret, write_secret
from plaudit_server.domain.records import KeyRow
from plaudit_server.errors import RateLimited, SettingError, Unauthenticated
from plaudit_server.limits import Limits
from plaudit_server.settings import Settings
from plaudit_server.telemetry import Telemetry


class Store:
    """Keys in a dictionary; counts how often it is asked."""

    def __init__(self) -> None:
        self.keys = {"plk_good": KeyRow("key_1", "app", ["chat"], "plk_g…", 0, None)}
        self.asked = 0

    async def find(self, secret: str) -> KeyRow | None:
        self.asked += 1
        return self.keys.get(secret)


def ring_of(store: Store, **settings: Any) -> KeyRing:
    return KeyRing(store.find, Limits(Settings(**settings), Telemetry()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    return now


async def test_a_key_is_asked_for_once_within_its_time(clock: list[float]) -> None:
    store = Store()
    ring = ring_of(store)
    for _ in range(5):
        assert (await ring.principal("plk_good")).key_id == "key_1"
    assert store.asked == 1
    clock[0] += auth.CACHE_SECONDS
    await ring.principal("plk_good")
    assert store.asked == 2


async def test_a_revoked_key_stops_within_a_second(clock: list[float]) -> None:
    store = Store()
    ring = ring_of(store)
    await ring.principal("plk_good")
    store.keys.clear()
    clock[0] += 1.0
    with pytest.raises(Unauthenticated):
        await ring.principal("plk_good")


async def test_an_unknown_key_is_not_remembered(clock: list[float]) -> None:
    store = Store()
    ring = ring_of(store)
    with pytest.raises(Unauthenticated):
        await ring.principal("plk_new")
    store.keys["plk_new"] = store.keys["plk_good"]
    await ring.principal("plk_new")


async def test_many_requests_of_one_new_key_ask_once(clock: list[float]) -> None:
    store = Store()
    ring = ring_of(store, wrong_keys_per_minute=1)
    found = await asyncio.gather(*(ring.principal("plk_good", "10.0.0.1") for _ in range(100)))
    assert {each.key_id for each in found} == {"key_1"}
    assert store.asked == 1


async def test_wrong_keys_of_one_address_soon_stop_reaching_the_store() -> None:
    store = Store()
    ring = ring_of(store, wrong_keys_per_minute=10)
    refused = []
    for number in range(1000):
        with pytest.raises((Unauthenticated, RateLimited)) as caught:
            await ring.principal(f"plk_{number}", "10.0.0.1")
        refused.append(caught.type)
    assert store.asked <= 11
    assert refused.count(RateLimited) >= 989
    with pytest.raises(Unauthenticated):
        await ring.principal("plk_0", "10.0.0.2")


async def test_a_key_in_use_survives_a_guesser_at_its_address(clock: list[float]) -> None:
    store = Store()
    ring = ring_of(store, wrong_keys_per_minute=2)
    await ring.principal("plk_good", "10.0.0.1")
    for number in range(5):
        with pytest.raises((Unauthenticated, RateLimited)):
            await ring.principal(f"plk_{number}", "10.0.0.1")
    clock[0] += 10 * auth.CACHE_SECONDS
    assert (await ring.principal("plk_good", "10.0.0.1")).key_id == "key_1"
    ring.forget()
    assert (await ring.principal("plk_good", "10.0.0.1")).key_id == "key_1"


async def test_equal_wrong_keys_at_once_count_each() -> None:
    store = Store()
    ring = ring_of(store, wrong_keys_per_minute=5)
    outcomes = await asyncio.gather(*(ring.principal("plk_no", "10.0.0.1") for _ in range(20)), return_exceptions=True)
    assert [type(each) for each in outcomes].count(RateLimited) == 15
    assert store.asked == 1


@pytest.mark.parametrize("secret", ["", "sk-abc", "PLK_good", "plk_" + "x" * 500])
async def test_a_malformed_key_never_reaches_the_store(secret: str) -> None:
    store = Store()
    with pytest.raises(Unauthenticated):
        await ring_of(store).principal(secret)
    assert store.asked == 0


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_CACHED", 3)
    store = Store()
    store.keys |= {f"plk_{number}": store.keys["plk_good"] for number in range(10)}
    ring = ring_of(store)
    for number in range(10):
        await ring.principal(f"plk_{number}")
    assert len(ring._known) <= 3


@pytest.mark.parametrize(
    ("held", "asked", "allowed"),
    [
        ({"chat"}, {"chat"}, True),
        ({"chat"}, {"feedback"}, False),
        ({"chat", "feedback"}, {"feedback", "viewer"}, True),
        ({"admin"}, {"trainer"}, True),
        ({"operator"}, {"admin"}, False),
    ],
)
def test_roles(held: set[str], asked: set[str], allowed: bool) -> None:
    assert Principal("k", "n", frozenset(held)).may(asked) is allowed  # type: ignore[arg-type]


def test_a_secret_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    os.umask(previous := os.umask(0))  # even a permissive umask must not open it
    try:
        os.umask(0)
        write_secret(path, "plk_abc")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == "plk_abc"
    assert [entry.name for entry in tmp_path.iterdir()] == ["admin.key"]


def test_an_unreadable_secret_file_names_the_mend(tmp_path: Path) -> None:
    (tmp_path / "admin.key").mkdir()
    with pytest.raises(SettingError, match="delete it"):
        read_secret(tmp_path / "admin.key")


def test_no_file_is_no_secret(tmp_path: Path) -> None:
    assert read_secret(tmp_path / "admin.key") is None
