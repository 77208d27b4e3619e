"""What the Redis store leaves on the server: one hash tag, nothing that stays for ever, nothing dropped too early."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from otel_tokens.guard.store.base import REMEMBER_MS, Slot
from otel_tokens.guard.store.redis.protocol import PAGE
from otel_tokens.guard.store.redis.store import RedisStore

TTL = 60_000


class Server:
    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url)
        self.prefix = uuid.uuid4().hex
        self.store = RedisStore(url, timeout=5, prefix=self.prefix)

    def keys(self, pattern: str = "*") -> list[str]:
        return sorted(key.decode().partition("}:")[2] for key in self.client.keys(f"{{{self.prefix}}}:{pattern}"))

    def at(self, key: str) -> str:
        return f"{{{self.prefix}}}:{key}"


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    server = Server(redis_url)
    yield server
    server.store.close()
    server.client.close()


def test_all_keys_share_one_hash_tag(server: Server) -> None:
    from redis.crc import key_slot

    slot = Slot("b{1}|t|", "b{1}", "tokens", "x={y}", 100, slice_ms=1000, slices=3)
    server.store.admit("lease{2}", [slot], [5], TTL)
    server.store.settle("lease{2}", [slot], [5])
    server.store.change("b{1}", "set", unit="tokens", amount=5)
    keys = server.client.keys(f"*{server.prefix}*")
    assert len(keys) >= 4
    assert len({key_slot(key) for key in keys}) == 1


def test_a_settled_lease_is_remembered_for_its_time(server: Server) -> None:
    slot = Slot("b|t|", "b", "tokens", "", 100)
    server.store.admit("open", [slot], [5], TTL)
    server.store.settle("k", [slot], [5])
    assert REMEMBER_MS - 5000 < server.client.pttl(server.at("l:k")) <= REMEMBER_MS
    assert server.client.pttl(server.at("l:open")) == -1, "or its reservation would never be given back"


@pytest.mark.parametrize(
    ("more", "least", "most"),
    [
        ({}, None, None),
        ({"keep_ms": 10_000}, TTL + REMEMBER_MS, TTL + 1.2 * REMEMBER_MS),
        ({"keep_ms": 40 * REMEMBER_MS}, 40 * REMEMBER_MS, 42 * REMEMBER_MS),
        ({"start": 1, "end": 30 * REMEMBER_MS}, 60 * REMEMBER_MS, 61 * REMEMBER_MS),
        ({"slice_ms": 60_000, "slices": 60, "keep_ms": 8 * REMEMBER_MS}, 8 * REMEMBER_MS, 9 * REMEMBER_MS),
    ],
)
def test_accounts_go_by_themselves_but_not_too_early(
    server: Server, more: dict[str, int], least: float | None, most: float | None
) -> None:
    if "end" in more:
        start = server.store.now() - 1000
        more = {"start": start, "end": start + more["end"]}
    slot = Slot("b|t|", "b", "tokens", "", 100, **more)
    for n in range(3):
        server.store.admit(f"k{n}", [slot], [5], TTL)
        server.store.settle(f"k{n}", [slot], [5])
    for key in server.keys("a:*") + server.keys("q:*"):
        left = server.client.pttl(server.at(key))
        if least is None or most is None:
            assert left == -1
        else:
            assert least - 5000 <= left <= most
    server.store.change("b", "set", unit="tokens", scope="", amount=7)
    assert server.client.pttl(server.at("a:b|t|")) == -1, "a limit of its own is not forgotten"
    server.store.change("b", "unset", unit="tokens", scope="")
    assert (server.client.pttl(server.at("a:b|t|")) == -1) is (least is None)


def test_a_renewed_lease_keeps_its_account(server: Server) -> None:
    slot = Slot("b|t|", "b", "tokens", "", 100, keep_ms=1000)
    server.store.admit("k", [slot], [5], 100)
    server.store.renew(["k"], 50 * REMEMBER_MS)
    assert server.client.pttl(server.at("a:b|t|")) > 50 * REMEMBER_MS


def test_the_index_forgets_what_redis_has_dropped(server: Server) -> None:
    for n in range(30):
        server.store.admit(f"k{n}", [Slot(f"s|t|{n}", "s", "tokens", str(n), 100)], [1], 0)
    for key in server.keys("a:*"):
        server.client.delete(server.at(key))
    for n in range(40):
        server.store.admit(f"n{n}", [Slot(f"t|t|{n}", "t", "tokens", str(n), 100)], [1], 0)
    assert server.client.zcard(server.at("idx")) == 40


def test_listing_and_changing_go_page_by_page(server: Server) -> None:
    count = 2 * PAGE + 3
    for n in range(count):
        server.store.admit(f"k{n}", [Slot(f"s|t|{n:04}", "s", "tokens", f"x={n:04}", 100)], [1], 0)
    server.store.admit("other", [Slot("sz|t|", "sz", "tokens", "x=0007", 100)], [1], 0)
    assert [row.scope for row in server.store.rows("s", limit=5000)] == [f"x={n:04}" for n in range(count)]
    assert [row.budget for row in server.store.rows(scope="x=0007")] == ["s", "sz"]
    assert len(server.store.rows(limit=PAGE + 1)) == PAGE + 1
    assert server.store.change("s", "add", unit="tokens", amount=7) == count
    assert {row.limit for row in server.store.rows("s", limit=5000)} == {107}
    assert server.store.change("s", "set", unit="tokens", amount=50) == count + 1
    assert server.store.rows("sz")[0].limit == 100


def test_a_crowd_of_expired_leases_is_given_back(server: Server) -> None:
    slot = Slot("b|t|", "b", "tokens", "", 10_000)
    for n in range(1500):
        server.store.admit(f"k{n}", [slot], [1], 1000)
    deadline = time.monotonic() + 300
    while server.store.read([slot])[0][1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.client.zcard(server.at("exp")) == 0


def test_amounts_above_two_to_the_53(server: Server) -> None:
    """Beyond 9 million USD in nano-USD: nothing breaks, and what is lost is far below a cent."""
    slot = Slot("b|usd|", "b", "usd", "", 10**18)
    server.store.admit("k", [slot], [10**17], TTL)
    server.store.settle("k", [slot], [10**17 + 12345])
    used, reserved, limit = server.store.read([slot])[0]
    assert abs(used - 10**17 - 12345) <= 128
    assert (reserved, limit) == (0, 10**18)
    assert not server.store.admit("k2", [slot], [10**18], TTL).granted
