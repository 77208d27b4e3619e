"""A Redis that dies, hangs, forgets or refuses: an error within the timeout, and back to work by itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_tokens.guard.store.base import Slot, StoreError
from otel_tokens.guard.store.redis.store import RedisStore

TTL = 60_000
TIMEOUT = 1.0
SLACK = 8.0  # of a busy machine; less than twenty timeouts, one after the other
S = (Slot("b|t|", "b", "tokens", "", 1000),)


@pytest.fixture
def open_redis() -> Iterator[Callable[..., RedisStore]]:
    opened: list[RedisStore] = []

    def make(url: str, timeout: float = TIMEOUT, **more: str) -> RedisStore:
        opened.append(RedisStore(url, timeout=timeout, **more))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def refused(call: Callable[[], object]) -> tuple[float, str]:
    """How long the call took to fail, and what it said."""
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        call()
    return time.monotonic() - began, str(caught.value)


def ask(redis_server, *words: str) -> bytes:
    """One command, by hand."""
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=5) as link:
        link.sendall((" ".join(words) + "\r\n").encode())
        return link.recv(65536)


# ---- killed --------------------------------------------------------------------------------------------------


def test_killed_and_started_again(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url)
    assert store.admit("before", S, [100], TTL).granted
    redis_server.kill()
    for call in (lambda: store.admit("k", S, [1], TTL), lambda: store.settle("k", S, [1]), lambda: store.read(S)):
        took, said = refused(call)
        assert took < TIMEOUT + SLACK
        assert f"127.0.0.1:{redis_server.port}" in said
    redis_server.start()
    # The server has forgotten: the lease from before is booked in full, once.
    assert store.admit("after", S, [5], TTL).granted
    assert store.settle("before", S, [90]) == [(0, 90, 5, 1000)]
    assert store.settle("before", S, [90]) == ()


def test_restarted_between_two_calls(redis_server, open_redis) -> None:
    """The connection that waited in the pool is dead, but nobody needs to know."""
    store = open_redis(redis_server.url, 30)

    async def in_a_loop(key: str) -> None:
        assert (await store.aadmit(key, S, [1], TTL)).granted

    async def story() -> None:
        await in_a_loop("one")
        assert store.admit("two", S, [1], TTL).granted
        redis_server.kill()
        redis_server.start()
        await asyncio.sleep(0.05)  # a loop sees that a connection has died only when it runs
        await in_a_loop("three")
        assert store.admit("four", S, [1], TTL).granted
        await store.aclose()

    asyncio.run(story())
    assert store.read(S) == [(0, 2, 1000)]


def test_killed_in_the_middle_of_a_race(make_redis, open_redis) -> None:
    """With its data on disk: no overspend, and no error but StoreError, each within the timeout."""
    server = make_redis(durable=True)
    store = open_redis(server.url)
    stop = threading.Event()
    slowest = [0.0]
    faults: list[BaseException] = []
    failures: list[str] = []

    def work(worker: int) -> int:
        granted = n = 0
        while not stop.is_set():
            n += 1
            began = time.monotonic()
            try:
                if store.admit(f"{worker}-{n}", S, [1], TTL).granted:
                    granted += 1
            except StoreError as error:
                failures.append(str(error))
                time.sleep(0.01)
            except BaseException as error:
                faults.append(error)
            slowest[0] = max(slowest[0], time.monotonic() - began)
        return granted

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, n) for n in range(8)]
        for _ in range(2):
            time.sleep(0.15)
            server.kill()
            known, deadline = len(failures), time.monotonic() + 300
            while len(failures) == known and time.monotonic() < deadline:
                time.sleep(0.01)
            server.start()
        time.sleep(0.3)
        stop.set()
        granted = sum(worker.result() for worker in workers)
    assert faults == []
    assert failures
    assert slowest[0] < TIMEOUT + 2 * SLACK
    _, reserved, limit = store.read(S)[0]
    # What was granted is there; what failed may have been done or not.
    assert granted <= reserved <= limit


# ---- hanging -------------------------------------------------------------------------------------------------


def test_a_paused_server_costs_a_call_its_timeout(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url)
    assert store.admit("before", S, [100], TTL).granted
    redis_server.send(signal.SIGSTOP)
    try:
        for n in range(3):  # the first on a live connection, the others on new ones
            took, said = refused(lambda n=n: store.admit(f"paused-{n}", S, [1], 500))
            assert TIMEOUT * 0.9 < took < TIMEOUT + SLACK
            assert "imeout" in said or "within" in said
        with ThreadPoolExecutor(20) as pool:
            began = time.monotonic()
            waits = list(pool.map(lambda n: refused(lambda: store.read(S))[0], range(20)))
        assert max(waits) < TIMEOUT + SLACK
        assert time.monotonic() - began < TIMEOUT + 2 * SLACK
    finally:
        redis_server.send(signal.SIGCONT)
    deadline, patient = time.monotonic() + 300, open_redis(redis_server.url, 30)
    while patient.read(S) != [(0, 100, 1000)]:  # what was still on its way is given back after its time
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_a_paused_server_and_a_loop(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url)
    assert (await store.aadmit("before", S, [100], TTL)).granted
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    redis_server.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(store.aread(S) for _ in range(50)), return_exceptions=True)
        took = time.monotonic() - began
    finally:
        redis_server.send(signal.SIGCONT)
    ticking.cancel()
    assert all(isinstance(answer, StoreError) for answer in answers)
    assert TIMEOUT * 0.9 < took < TIMEOUT + SLACK
    assert ticks > 5, "the loop stood still"
    assert await store.aread(S) == [(0, 100, 1000)]
    await store.aclose()


class Lazy(threading.Thread):
    """Something on a port that accepts, and answers each command late or never."""

    def __init__(self, pause: float | None) -> None:
        super().__init__(daemon=True)
        self.pause = pause
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://:secret@127.0.0.1:{self.listener.getsockname()[1]}"
        self.links: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            self.links.append(link)
            threading.Thread(target=self.answer, args=(link,), daemon=True).start()

    def answer(self, link: socket.socket) -> None:
        try:
            while link.recv(65536) and self.pause is not None:
                time.sleep(self.pause)
                link.sendall(b"+OK\r\n")
        except OSError:
            pass

    def close(self) -> None:
        self.listener.close()
        for link in self.links:
            link.close()


@pytest.mark.parametrize("pause", [None, TIMEOUT * 0.7])
def test_a_server_that_never_gets_to_the_point(open_redis, pause: float | None) -> None:
    """Logging in takes several answers. None of them may take the timeout."""
    lazy = Lazy(pause)
    store = open_redis(lazy.url)
    took, said = refused(lambda: store.admit("k", S, [1], TTL))
    most = TIMEOUT if pause is None else 4 * pause
    assert TIMEOUT * 0.9 < took < most + SLACK
    assert "secret" not in said

    async def in_a_loop() -> float:
        began = time.monotonic()
        with pytest.raises(StoreError):
            await store.aadmit("k", S, [1], TTL)
        return time.monotonic() - began

    assert TIMEOUT * 0.9 < asyncio.run(in_a_loop()) < most + SLACK
    lazy.close()


class Distant(Lazy):
    """A way to a server on which everything takes 50 ms."""

    def __init__(self, port: int) -> None:
        self.port = port
        super().__init__(0.05)
        self.url = self.url.replace(":secret@", "")

    def answer(self, link: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self.port))
        threading.Thread(target=self.carry, args=(far, link), daemon=True).start()
        self.carry(link, far)

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 20):
                time.sleep(self.pause or 0)
                target.sendall(data)
            target.close()
        except OSError:
            pass


async def test_many_tasks_on_a_distant_server_do_not_wait_for_each_other(redis_server, open_redis) -> None:
    """One by one they would take 40 seconds; what the guard itself delays must not look like a dead store."""
    distant = Distant(redis_server.port)
    store = open_redis(distant.url, 20)
    await store.aread(S)
    answers = await asyncio.gather(*(store.aadmit(f"k{n}", S, [1], TTL) for n in range(400)))
    assert sorted(answer.balances[0][1] for answer in answers) == list(range(1, 401))
    await store.aclose()
    distant.close()


def test_a_name_that_cannot_be_looked_up(open_redis) -> None:
    store = open_redis("redis://no-such-host.invalid:6379")
    took, _ = refused(lambda: store.read(S))
    assert took < TIMEOUT + SLACK


# ---- forgetting, refusing ------------------------------------------------------------------------------------


def test_scripts_are_loaded_again_when_forgotten(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url, 30)
    store.admit("one", S, [1], TTL)
    ask(redis_server, "SCRIPT", "FLUSH")
    store.admit("two", S, [1], TTL)

    async def in_a_loop() -> None:
        ask(redis_server, "SCRIPT", "FLUSH")
        await store.aadmit("three", S, [1], TTL)
        await store.aclose()

    asyncio.run(in_a_loop())
    assert store.read(S) == [(0, 3, 1000)]


def test_one_round_trip_per_admission(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url, 30)
    store.admit("first", S, [1], TTL)
    store.settle("first", S, [1])

    def calls() -> tuple[int, int]:
        stats = ask(redis_server, "INFO", "commandstats").decode()
        counts = [line for line in stats.splitlines() if line.startswith("cmdstat_evalsha:")]
        everything = ask(redis_server, "INFO", "stats").decode()
        total = next(line for line in everything.splitlines() if line.startswith("total_commands_processed:"))
        return int(counts[0].split("calls=")[1].split(",")[0]), int(total.split(":")[1])

    before, total_before = calls()
    for n in range(10):
        store.admit(f"k{n}", S, [1], TTL)
        store.settle(f"k{n}", S, [1])
    after, total_after = calls()
    assert after - before == 20
    # Commands inside of scripts count too, so this only shows that no connection was made for a call.
    assert total_after >= total_before + 20
    assert b"connected_clients:2" in ask(redis_server, "INFO", "clients")


def test_wrong_password(make_redis, open_redis) -> None:
    server = make_redis("--requirepass", "right")
    store = open_redis(f"redis://:wrong-secret@127.0.0.1:{server.port}", 30)
    _, said = refused(lambda: store.read(S))
    assert "secret" not in said
    assert open_redis(f"redis://:right@127.0.0.1:{server.port}", 30).read(S) == [(0, 0, 1000)]


def test_a_full_server(redis_server, open_redis) -> None:
    store = open_redis(redis_server.url, 30)
    store.admit("k", S, [1], TTL)
    ask(redis_server, "CONFIG", "SET", "maxmemory", "1")
    _, said = refused(lambda: store.admit("k2", S, [1], TTL))
    assert "memory" in said
    ask(redis_server, "CONFIG", "SET", "maxmemory", "0")
    assert store.admit("k2", S, [1], TTL).granted


def test_a_demoted_server(redis_server, make_redis, open_redis) -> None:
    store = open_redis(redis_server.url, 30)
    store.admit("k", S, [1], TTL)
    other = make_redis()
    ask(redis_server, "REPLICAOF", "127.0.0.1", str(other.port))
    _, said = refused(lambda: store.admit("k2", S, [1], TTL))
    assert "read only" in said or "READONLY" in said or "MASTERDOWN" in said
    ask(redis_server, "REPLICAOF", "NO", "ONE")
    assert store.admit("k2", S, [1], TTL).granted


def test_prefixes_know_nothing_of_each_other(redis_url, open_redis) -> None:
    one, other = open_redis(redis_url, 30, prefix="one-app"), open_redis(redis_url, 30, prefix="other-app")
    one.admit("k", S, [10], TTL)
    assert other.read(S) == [(0, 0, 1000)]
    assert other.rows() == []
    one.change("b", "set", unit="tokens", amount=5)
    assert other.read(S) == [(0, 0, 1000)]


def test_odd_names_survive(redis_url, open_redis) -> None:
    store = open_redis(redis_url, 30, prefix="odd {names} é\ud800")
    odd = Slot("k é\ud800 {x}", "budget é\ud800", "operations:file edit", "tag=a%2Cb é", 100)
    store.admit("lease é\ud800", [odd], [10], TTL)
    assert [(row.budget, row.unit, row.scope) for row in store.rows()] == [(odd.budget, odd.unit, odd.scope)]
    assert store.change(odd.budget, "reset", unit=odd.unit, scope=odd.scope) == 1
    assert store.settle("lease é\ud800", [odd], [7]) == [(0, 7, 0, 100)]
