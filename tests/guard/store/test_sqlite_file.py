"""The SQLite store's file: who may read it, who locks it, what damages it, what is kept in it and for how long."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from otel_tokens.guard.store.base import REMEMBER_MS, Slot, StoreError
from otel_tokens.guard.store.sqlite import store as sqlite
from otel_tokens.guard.store.sqlite.store import SqliteStore

TTL = 60_000
S = (Slot("b|t|", "b", "tokens", "", 1000),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "budgets.db"


@pytest.fixture
def open_file(path: Path) -> Iterator[Callable[..., SqliteStore]]:
    opened: list[SqliteStore] = []

    def make(timeout: float = 5) -> SqliteStore:
        opened.append(SqliteStore(path, timeout=timeout))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, timeout=5)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_only_the_user_may_read_it(path: Path, open_file) -> None:
    before = os.umask(0)
    try:
        store = open_file()
        store.admit("k", S, [1], TTL)
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["budgets.db", "budgets.db-shm", "budgets.db-wal"]
    assert {mode(file) for file in files} == {0o600}


def test_it_survives_the_process(path: Path, open_file) -> None:
    open_file().admit("k", S, [30], TTL)
    other = open_file()
    assert other.settle("k", S, [20]) == [(0, 20, 0, 1000)]
    assert open_file().settle("k", S, [20]) == ()


# ---- locks ---------------------------------------------------------------------------------------------------


def test_a_lock_of_others_costs_at_most_the_timeout(path: Path, open_file) -> None:
    store = open_file(0.5)
    store.read(S)
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"locked by others for more than 0\.5 s"):
            store.admit("k", S, [1], TTL)
        assert 0.48 < time.monotonic() - began < 60

        async def in_a_loop() -> int:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.005)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            with pytest.raises(StoreError, match="locked"):
                await store.aadmit("k", S, [1], TTL)
            ticking.cancel()
            return ticks

        assert asyncio.run(in_a_loop()) > 3, "the loop stood still"
    finally:
        hog.execute("ROLLBACK")
        hog.close()
    assert store.admit("k", S, [1], TTL).granted


def test_a_lock_let_go_in_time_is_only_a_wait(path: Path, open_file) -> None:
    store = open_file(60)
    store.read(S)
    hog = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    hog.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, lambda: hog.execute("COMMIT"))
    began = time.monotonic()
    timer.start()
    assert store.admit("k", S, [1], TTL).granted
    assert 0.09 < time.monotonic() - began < 30
    timer.join()
    hog.close()


def test_threads_and_tasks_take_turns_at_a_locked_file(path: Path, open_file, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all competed with other processes at once, some would never get the file."""
    store = open_file(60)
    store.read(S)
    hog = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    tried: set[object] = set()
    begin = store._file._begin

    def watched() -> sqlite3.Connection:
        if hog.in_transaction:
            running = asyncio.current_task() if asyncio._get_running_loop() else threading.get_ident()
            tried.add(running)
        return begin()

    monkeypatch.setattr(store._file, "_begin", watched)

    def lock_until_tried() -> threading.Thread:
        def let_go() -> None:
            while not tried:
                time.sleep(0.01)
            time.sleep(0.2)  # for the others to try, if they would
            hog.execute("COMMIT")

        hog.execute("BEGIN IMMEDIATE")
        holder = threading.Thread(target=let_go)
        holder.start()
        return holder

    holder = lock_until_tried()
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda n: store.admit(f"thread-{n}", S, [1], TTL).granted, range(16)))
    holder.join()
    assert len(tried) == 1

    async def many() -> None:
        admissions = await asyncio.gather(*(store.aadmit(f"task-{n}", S, [1], TTL) for n in range(50)))
        assert all(admission.granted for admission in admissions)

    tried.clear()
    holder = lock_until_tried()
    asyncio.run(many())
    holder.join()
    # Each may look once before it queues up.
    assert 1 <= len(tried) <= 2
    hog.close()


def test_settling_at_once_does_not_wait(path: Path, open_file) -> None:
    store = open_file(60)
    store.admit("k", S, [10], TTL)
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StoreError, match="locked"):
        store.settle_at_once("k", S, [7])
    assert time.monotonic() - began < 20
    hog.execute("ROLLBACK")
    hog.close()
    assert store.settle_at_once("k", S, [7])[0][:3] == (0, 7, 0)


def test_first_use_by_many_at_once(open_file) -> None:
    """Each makes the file and its tables, or finds them."""
    stores = [open_file(60) for _ in range(8)]
    threads = [
        threading.Thread(target=lambda n=n: stores[n].admit(f"k{n}", S, [1], TTL), name=f"t{n}") for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].read(S) == [(0, 8, 1000)]


# ---- damage --------------------------------------------------------------------------------------------------


def test_not_a_database(path: Path, open_file) -> None:
    path.parent.mkdir()
    path.write_bytes(b"something else entirely\n" * 500)
    with pytest.raises(StoreError, match="not a database") as caught:
        open_file().admit("k", S, [1], TTL)
    assert str(path) in str(caught.value)


def test_damaged_while_in_use(path: Path, open_file) -> None:
    store = open_file()
    store.admit("k", S, [1], TTL)
    store.close()  # brings everything into the main file
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"malformed|not a database"):
        for n in range(3):
            store.admit(f"k{n}", S, [1], TTL)
    path.unlink()
    assert store.admit("k", S, [1], TTL).granted, "a new file is a new beginning"


def test_a_directory_in_its_place(path: Path, open_file) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="unable to open"):
        open_file().admit("k", S, [1], TTL)


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        SqliteStore(tmp_path / "file" / "budgets.db", timeout=1).read(S)


def test_read_only() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "budgets.db"
        store = SqliteStore(path, timeout=1)
        store.read(S)
        store.close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)

        def child() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)  # root may write anything
            with pytest.raises(StoreError, match=r"readonly|unable to open"):
                store.admit("k", S, [1], TTL)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(300)
        Path(folder).chmod(0o700)
        assert process.exitcode == 0


def test_a_full_disk(path: Path) -> None:
    """A limit on the size of files stands for the full disk; once there is room again, all goes on."""
    code = f"""
import resource, signal
from otel_tokens.guard.store.base import Slot, StoreError
from otel_tokens.guard.store.sqlite.store import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
S = (Slot("b|t|", "b", "tokens", "", 10**6),)
store = SqliteStore({str(path)!r}, timeout=1)
for n in range(20):
    store.admit(f"k{{n}}", S, [1], 60000)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, most))
granted = 20
try:
    for n in range(20, 2000):
        store.admit(f"k{{n}}", S, [1], 60000)
        granted += 1
except StoreError as error:
    print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(store.read(S)[0][1] == granted, store.admit("again", S, [1], 60000).granted)
store.close()
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (done.stdout, done.stderr) == ("refused\nTrue True\n", "")


def test_of_a_newer_version(path: Path, open_file) -> None:
    store = open_file()
    store.read(S)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE budget_store SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"schema 99.*update otel-tokens"):
        open_file().read(S)


def test_removed_while_in_use(path: Path, open_file, monkeypatch: pytest.MonkeyPatch) -> None:
    from otel_tokens.guard.store.sqlite import file as sqlite_file

    monkeypatch.setattr(sqlite_file, "_LOOK", 0.0)
    store, other = open_file(), open_file()
    store.admit("k", S, [1], TTL)
    for file in path.parent.iterdir():
        file.unlink()
    assert store.admit("k2", S, [2], TTL).granted
    assert other.read(S) == [(0, 2, 1000)], "both write to the file that is there"


# ---- what is kept --------------------------------------------------------------------------------------------


def test_it_may_share_a_file_with_the_ledger(path: Path, open_file) -> None:
    from otel_tokens.ledger.ledger import Ledger

    ledger = Ledger(path)
    store = open_file()
    assert store.admit("k", S, [1], TTL).granted
    assert ledger.disabled is None
    ledger.close()
    again = Ledger(path)
    assert again.disabled is None
    again.close()
    assert store.read(S) == [(0, 1, 1000)]


class Clock:
    def __init__(self) -> None:
        self.ms = 1_900_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sqlite, "host_ms", clock)
    return clock


def test_ended_leases_are_forgotten_after_their_time(path: Path, open_file, clock: Clock) -> None:
    store = open_file()
    for n in range(300):
        store.admit(f"old-{n}", S, [1], TTL)
        store.settle(f"old-{n}", S, [1])
    clock.ms += TTL + REMEMBER_MS - 1000
    assert store.settle("old-7", S, [1]) == ()
    clock.ms += 2000
    for n in range(200):
        store.settle(f"new-{n}", S, [1])
    assert query(path, "SELECT count(*) FROM budget_ended WHERE key LIKE 'old-%'") == [(0,)]
    assert query(path, "SELECT count(*) FROM budget_ended") == [(200,)]


def test_processes_that_end_soon_clean_up_as_well(path: Path, open_file, clock: Clock) -> None:
    store = open_file()
    for _ in range(1000):
        key = uuid.uuid4().hex
        store.admit(key, S, [1], TTL)
        store.settle(key, S, [1])
    clock.ms += TTL + REMEMBER_MS + 1000
    for _ in range(200):  # processes of ten calls each
        store = open_file()
        for _ in range(10):
            store.settle(uuid.uuid4().hex, S, [1])
        store.close()
    assert query(path, "SELECT count(*) FROM budget_ended")[0][0] < 2000 + 200


def test_accounts_are_forgotten_but_not_those_with_a_limit_of_their_own(path: Path, open_file, clock: Clock) -> None:
    store = open_file()

    def account(name: str, **more: int) -> Slot:
        return Slot(f"s|t|{name}", "s", "tokens", name, 100, **more)

    start = clock.ms
    past = [account(f"past-{n}", start=start, end=start + 1000) for n in range(20)]
    idle = [account(f"idle-{n}", keep_ms=5000) for n in range(20)]
    forever = account("forever")
    for slot in (*past, *idle, forever):
        store.admit(f"k-{slot.key}", [slot], [1], 0)
    store.admit("held", [idle[3]], [1], 10**9)
    store.change("s", "set", unit="tokens", scope="idle-4", amount=5)
    clock.ms += 10_000
    for n in range(60):
        store.admit(f"n{n}", [account(f"new-{n}")], [1], 0)
    left = query(path, "SELECT scope FROM budget_accounts WHERE scope NOT LIKE 'new-%' ORDER BY scope")
    assert left == [("forever",), ("idle-3",), ("idle-4",)]


def test_changes_reach_every_page(path: Path, open_file) -> None:
    store = open_file()
    slots = [Slot(f"s|t|{n:04}", "s", "tokens", f"{n:04}", 100) for n in range(1203)]
    store.admit("k", slots, [1] * len(slots), 0)
    assert store.change("s", "add", unit="tokens", amount=7) == 1203
    assert {row.limit for row in store.rows(limit=5000)} == {107}
    assert store.change("s", "set", unit="tokens", amount=50) == 1204


def test_a_lock_that_outlasts_one_wait_costs_the_next_ones_less(path: Path, open_file) -> None:
    store = open_file(1)
    store.read(S)
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        failures = list(pool.map(lambda n: failure(lambda: store.admit(f"k{n}", S, [1], TTL)), range(16)))
    assert all("locked" in text for text in failures)
    assert time.monotonic() - began < 14, "each has waited the whole timeout, one after the other"
    hog.execute("ROLLBACK")
    hog.close()
    assert store.admit("k", S, [1], TTL).granted


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    return str(caught.value)
