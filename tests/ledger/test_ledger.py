"""Writing: in the file before `write` returns, once, from any thread, process and fork."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

from otel_tokens.ledger import query
from otel_tokens.ledger.ledger import Ledger


def ids(path: str) -> Counter[str]:
    """The calls of a file, by SQLite alone."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return Counter(call_id for (call_id,) in connection.execute("SELECT id FROM calls"))


def test_a_record_is_there_when_write_returns(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    for number in range(3):
        ledger.write(make_record(f"c{number}"))
        assert len(ids(path)) == number + 1


def test_writing_twice_is_harmless(path: str, open_ledger, make_record) -> None:
    first, second = open_ledger(path), open_ledger(path)
    record = make_record()
    for ledger in (first, first, second):
        ledger.write(record)
    assert ids(path) == {"c1": 1}
    assert first.errors == second.errors == 0


def test_what_was_written_survives_sigkill(path: str, start) -> None:
    child = start("endless", path, "a", 0)
    seen = [child.stdout.readline().strip() for _ in range(300)]
    child.kill()
    seen += child.stdout.read().split()  # what it said before it died, and what readline has read ahead
    child.wait()
    assert child.returncode == -signal.SIGKILL
    written = ids(path)
    assert [call for call in seen if call not in written and call in {f"a-{n}" for n in range(10**6)}] == []
    assert len(written) - len(seen) in (0, 1)  # killed between writing and saying so
    assert {call.id for call in query.rows(path)} == set(written)


def test_eight_processes_lose_nothing_and_double_nothing(path: str, start) -> None:
    count = 150
    children = [start("write", path, f"p{number}", count) for number in range(8)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate() for child in children] == [("0 0 None\n", "")] * 8
    assert ids(path) == {f"p{number}-{n}": 1 for number in range(8) for n in range(count)}
    ((_, _, sums),) = query.aggregate(path, by=["provider"])
    assert f"{sums.cost['total']:f}" == f"{8 * count * 1e-7:.7f}"


def test_threads_share_a_ledger(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    together = threading.Barrier(8)

    def work(name: int) -> None:
        together.wait()
        for number in range(50):
            ledger.write(make_record(f"t{name}-{number}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(path) == {f"t{name}-{number}": 1 for name in range(8) for number in range(50)}
    assert ledger.errors == 0


def in_child(step) -> None:
    """Run something in a forked child and expect it to succeed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            step()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_with_an_open_ledger(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record("before"))

    def child() -> None:
        ledger.write(make_record("child"))
        in_child(lambda: ledger.write(make_record("grandchild")))
        ledger.write(make_record("child again"))

    in_child(child)
    ledger.write(make_record("parent"))
    assert ids(path) == dict.fromkeys(["before", "child", "grandchild", "child again", "parent"], 1)
    with closing(sqlite3.connect(path)) as connection:
        pids = dict(connection.execute("SELECT id, pid FROM calls"))
    assert len(set(pids.values())) == 3
    assert pids["before"] == pids["parent"] == os.getpid()


def test_a_child_that_outlives_its_parent_keeps_its_records(path: str, tmp_path: Path) -> None:
    """A parent that closes the file last would take the log away from a child without file locks of its own."""
    script = tmp_path / "daemon.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('child', {str(Path(__file__).with_name('child.py'))!r})\n"
        "child = importlib.util.module_from_spec(spec); spec.loader.exec_module(child)\n"
        f"ledger = child.Ledger({path!r})\n"
        "ledger.write(child.record('parent'))\n"
        "reader, writer = os.pipe()\n"
        "if os.fork():\n"
        "    os.close(writer)\n"
        "    os.read(reader, 1)  # the child has written once\n"
        "    ledger.write(child.record('parent again'))\n"
        "    sys.exit()  # closes the ledger\n"
        "ledger.write(child.record('child'))\n"
        "os.write(writer, b'x')\n"
        "sys.stdin.readline()  # until the parent is gone\n"
        "child.Ledger(sys.argv[1]).write(child.record('another process'))\n"
        "ledger.write(child.record('child again'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.wait()
    assert ids(path) == dict.fromkeys(["parent", "parent again", "child"], 1)  # opens and closes the file, too
    process.communicate(b"go\n")  # until the child is gone: it has the pipe
    assert ids(path) == dict.fromkeys(["parent", "parent again", "child", "another process", "child again"], 1)


def test_forks_while_other_threads_write(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    stop = threading.Event()
    written: list[str] = []

    def work() -> None:
        while not stop.is_set():
            name = f"thread-{len(written)}"
            ledger.write(make_record(name))
            written.append(name)

    thread = threading.Thread(target=work)
    thread.start()
    forks = 15
    for number in range(forks):
        in_child(lambda number=number: ledger.write(make_record(f"fork-{number}")))
    stop.set()
    thread.join()
    assert ids(path) == dict.fromkeys([*written, *(f"fork-{n}" for n in range(forks))], 1)
    assert ledger.errors == 0


def test_a_write_after_close_opens_it_again(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.close()
    ledger.close()
    ledger.write(make_record("late"))
    assert ids(path) == {"late": 1}


def test_a_handler_may_write_and_close_in_the_middle_of_a_write(path: str, open_ledger, make_record) -> None:
    """As a SIGTERM handler does: it runs in the thread that holds the lock."""
    ledger = open_ledger(path)
    names: list[str] = []

    def handler(*_: object) -> None:
        names.append(f"handler-{len(names)}")
        ledger.write(make_record(names[-1]))
        ledger.close()
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + len(names) / 1e5)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        number = 0
        while len(names) < 100:
            ledger.write(make_record(f"main-{number}"))
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ids(path) == dict.fromkeys([*(f"main-{n}" for n in range(number)), *names], 1)
    assert ledger.errors == 0


def test_the_end_of_the_process_closes_it(path: str) -> None:
    """Without a word from anybody: the log is moved into the file, nothing is left beside it."""
    script = (
        f"from otel_tokens.ledger.ledger import Ledger; import sys; sys.argv = ['x', 'none', {path!r}, '', '0']\n"
        f"import pathlib; exec(pathlib.Path({str(Path(__file__).with_name('child.py'))!r}).read_text())\n"
        f"ledger = Ledger({path!r}); ledger.write(record('only'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not Path(f"{path}-wal").exists()
    assert ids(path) == {"only": 1}


def test_a_ledger_takes_little_time(path: str, open_ledger, make_record) -> None:
    """Not a benchmark: a write that syncs the disk or searches the file would take a hundred times as long."""
    ledger = open_ledger(path)
    records = [make_record(f"c{number}") for number in range(1000)]
    before = os.times()
    for record in records:
        ledger.write(record)
    after = os.times()
    assert (after.user + after.system - before.user - before.system) / len(records) < 0.001


def test_the_module_is_used_as_a_sink(path: str, open_ledger, make_record) -> None:
    sink = open_ledger(path).write
    assert sink(make_record()) is None
    assert isinstance(sink.__self__, Ledger)
