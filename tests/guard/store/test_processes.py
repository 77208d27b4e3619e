"""Processes that die, fork, and have wrong clocks."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
import time

import pytest

from otel_tokens.guard.store.base import Slot

# Python 3.12 and later warn of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

TTL = 60_000
CAP = (Slot("cap|t|", "cap", "tokens", "", 4000), Slot("tenant|t|", "tenant", "tokens", "tenant=a", 5000))


def test_a_killed_process_gives_its_reservations_back(place, run_worker) -> None:
    store = place.open()
    worker = run_worker(place, "hold", 2500)
    assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    worker.send_signal(signal.SIGKILL)
    worker.wait(300)
    assert store.read(CAP)[0] == (0, 4000, 4000)
    assert not store.admit("other", CAP, [10, 10], TTL).granted
    deadline = time.monotonic() + 300
    while not store.admit("other", CAP, [4000, 4000], TTL).granted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.read(CAP)[0] == (0, 4000, 4000)


def test_killed_in_the_middle_of_writing(place, run_worker) -> None:
    """Whatever the moment, the store is whole: everything is given back, nothing was spent."""
    store = place.open()
    for n in range(3):
        worker = run_worker(place, "hammer", f"hammer-{n}")
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        time.sleep(0.05)
        worker.send_signal(signal.SIGKILL)
        worker.wait(300)
    deadline = time.monotonic() + 300
    while store.read(CAP)[0] != (0, 0, 4000):
        assert time.monotonic() < deadline, store.read(CAP)
        time.sleep(0.02)


def test_a_clock_that_is_wrong_moves_no_window(place, run_worker) -> None:
    store = place.open()
    store.read(CAP)  # from here on a Redis store knows the server's clock
    start = store.now() - 1000
    day = Slot("day|t|", "day", "tokens", "", 100, start, start + 3_600_000)
    worker = run_worker(place, "skewed", day.start, day.end)
    stdout, stderr = worker.communicate(timeout=300)
    assert (stdout.split(), stderr) == (["moved", "True", "True"], "")
    assert store.read([day]) == [(60, 0, 100)]
    assert not store.admit("here", [day], [41], TTL).granted
    assert store.admit("here", [day], [40], TTL).granted


def fork_and_call(story) -> None:  # type: ignore[no-untyped-def]
    """Run `story` in a forked child; its failure is ours."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=story)
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_a_forked_child_goes_on_with_the_same_object(place) -> None:
    store = place.open()
    assert store.admit("parents", CAP, [100, 100], TTL).granted

    def child() -> None:
        assert store.admit("childs", CAP, [10, 10], TTL).granted
        assert store.settle("childs", CAP, [7, 7])[0] == (0, 7, 100, 4000)
        asyncio.run(in_a_loop())

    async def in_a_loop() -> None:
        assert (await store.aadmit("childs-loop", CAP, [10, 10], TTL)).granted
        await store.asettle("childs-loop", CAP, [3, 3])
        await store.aclose()

    fork_and_call(child)
    assert store.read(CAP)[0] == (10, 100, 4000)
    assert store.settle("parents", CAP, [100, 100])[0] == (10, 110, 0, 4000)


def test_forks_while_threads_and_a_loop_are_at_it(place) -> None:
    store = place.open()
    stop = threading.Event()
    faults: list[BaseException] = []

    def busy(name: str) -> None:
        try:
            n = 0
            while not stop.is_set():
                n += 1
                store.admit(f"{name}-{n}", CAP, [1, 1], TTL)
                store.release(f"{name}-{n}")
        except BaseException as error:
            faults.append(error)

    def child() -> None:
        for n in range(20):
            key = f"child-{os.getpid()}-{n}"
            store.admit(key, CAP, [1, 1], TTL)
            store.settle(key, CAP, [1, 1])

    threads = [threading.Thread(target=busy, args=(f"thread-{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            fork_and_call(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
    assert faults == []
    assert store.read(CAP)[0] == (100, 0, 4000)


def test_a_fork_inside_a_running_loop(place) -> None:
    store = place.open()

    def child() -> None:
        assert store.admit("child", CAP, [10, 10], TTL).granted
        gc.collect()  # must not close, on the selector that both share, what the parent listens to

    async def story() -> None:
        assert (await store.aadmit("before", CAP, [1, 1], TTL)).granted
        pid = os.fork()
        if pid == 0:
            try:
                child()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert (await store.aadmit("after", CAP, [1, 1], TTL)).granted
        await store.aclose()

    asyncio.run(story())
    assert store.read(CAP)[0] == (0, 12, 4000)


def test_a_closed_store_may_be_used_again(place) -> None:
    store = place.open()
    for n in range(3):
        assert store.admit(f"k{n}", CAP, [1, 1], TTL).granted
        store.close()
    assert place.open().read(CAP)[0] == (0, 3, 4000)
