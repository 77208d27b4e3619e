"""A file that cannot be used: the ledger is disabled with one clear error, and the application goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_tokens.assemble import open_ledger as open_configured
from otel_tokens.ledger import ledger as module
from otel_tokens.ledger import query
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.settings import Settings
from otel_tokens.telemetry.metrics import Metrics


@pytest.fixture
def told() -> list[int]:
    """What `on_lost` was told."""
    return []


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR]


def disabled_at_once(ledger: Ledger, make_record, told: list[int], caplog, words: str) -> None:
    """Five writes: five lost records, one message, in words for a user and with the path."""
    for number in range(5):
        ledger.write(make_record(f"c{number}"))
    ledger.flush()
    ledger.close()
    assert words in (ledger.disabled or "")
    assert ledger.errors == sum(told) == 5
    (message,) = errors(caplog)
    assert ledger.path in message
    assert words in message
    assert "Traceback" not in caplog.text


@contextlib.contextmanager
def nothing_changes(path: Path) -> Iterator[None]:
    before = path.read_bytes()
    yield
    assert path.read_bytes() == before


def test_a_directory(tmp_path: Path, open_ledger, make_record, told, caplog) -> None:
    ledger = open_ledger(tmp_path, on_lost=told.append)
    disabled_at_once(ledger, make_record, told, caplog, "is a directory")


def test_a_file_of_something_else(tmp_path: Path, open_ledger, make_record, told, caplog) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("the user's own words\n" * 500)
    with nothing_changes(file):
        ledger = open_ledger(file, on_lost=told.append)
        disabled_at_once(ledger, make_record, told, caplog, "not a ledger")


def test_a_damaged_file(path: str, open_ledger, make_record, told, caplog) -> None:
    ledger = open_ledger(path)
    for number in range(200):
        ledger.write(make_record(f"old{number}"))
    ledger.close()
    with open(path, "r+b") as file:
        file.seek(2048)
        file.write(os.urandom(os.path.getsize(path) - 2048))
    with nothing_changes(Path(path)):
        disabled_at_once(open_ledger(path, on_lost=told.append), make_record, told, caplog, "damaged")


@pytest.mark.parametrize("device", ["/dev/full", "/dev/null"])
def test_a_device(device: str, open_ledger, make_record, told, caplog) -> None:
    disabled_at_once(open_ledger(device, on_lost=told.append), make_record, told, caplog, "not a regular file")
    assert not os.path.exists(f"{device}-wal")


def test_a_file_below_a_file(tmp_path: Path, open_ledger, make_record, told, caplog) -> None:
    (tmp_path / "file").write_text("")
    ledger = open_ledger(tmp_path / "file" / "ledger.db", on_lost=told.append)
    disabled_at_once(ledger, make_record, told, caplog, "Not a directory")


@pytest.mark.parametrize("name", ["with\0zero", "~nobody-of-this-name/ledger.db"])
def test_a_path_that_can_be_none(tmp_path: Path, monkeypatch, open_ledger, make_record, told, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = open_ledger(name, on_lost=told.append)
    ledger.write(make_record())
    assert ledger.errors == sum(told) == ("zero" in name)


def test_a_read_only_directory(as_somebody, make_record) -> None:
    folder, run = as_somebody
    os.chmod(folder, 0o555)

    def attempt() -> object:
        told: list[int] = []
        ledger = Ledger(f"{folder}/ledger.db", on_lost=told.append)
        ledger.write(make_record())
        ledger.write(make_record())
        return ledger.disabled, ledger.errors, sum(told)

    assert run(attempt) == "('Permission denied', 2, 2)"


def test_a_read_only_file(as_somebody, make_record) -> None:
    folder, run = as_somebody
    path = f"{folder}/ledger.db"
    Ledger(path).close()
    os.chmod(path, 0o444)

    def attempt() -> object:
        told: list[int] = []
        ledger = Ledger(path, on_lost=told.append)
        ledger.write(make_record())
        ledger.write(make_record())
        return "read-only" in ledger.disabled, ledger.errors, sum(told)

    assert run(attempt) == "(True, 2, 2)"


def test_a_full_file_system(tmp_path: Path, make_record) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "none", place]).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        told: list[int] = []
        ledger = Ledger(place / "ledger.db", on_lost=told.append)
        number = 0
        while ledger.disabled is None:
            ledger.write(make_record(f"c{number}"))
            number += 1
            assert number < 5000
        ledger.write(make_record("one more"))
        assert "no space left" in ledger.disabled
        assert ledger.errors == sum(told) == 2
        ledger.close()
        assert [record.id for record in query.rows(place / "ledger.db")] == [f"c{n}" for n in range(number - 1)]
    finally:
        subprocess.run(["umount", place], check=True)


def full(ledger: Ledger) -> None:
    """Let the file not grow any more."""
    connection = ledger._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def test_a_full_disk_that_has_room_again(
    path: str, open_ledger, make_record, told, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(path, on_lost=told.append)
    full(ledger)
    number = 0
    while ledger.disabled is None:
        ledger.write(make_record(f"c{number}"))
        number += 1
    assert "no space left" in ledger.disabled
    ledger.write(make_record("lost"))
    assert ledger.errors == sum(told) == 2
    (message,) = errors(caplog)
    assert "tried again every 60 s" in message
    monkeypatch.setattr(module, "_RETRY", -1.0)  # a minute has gone by
    ledger._retry_at = 0.0
    ledger.write(make_record("kept"))  # through a new connection, without the limit
    assert ledger.disabled is None
    ledger.write(make_record("kept too"))
    assert [record.id for record in query.rows(path)] == [*(f"c{n}" for n in range(number - 1)), "kept", "kept too"]
    assert ledger.errors == 2
    assert "keeps records again; 2 were lost" in caplog.text


def test_a_disk_that_fails(path: str, as_somebody, make_record) -> None:
    """A limit on the size of files is an error in the middle of a write, as a broken disk is."""
    folder, run = as_somebody

    def attempt() -> object:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger(f"{folder}/ledger.db")
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        number = 0
        while ledger.disabled is None and number < 5000:
            ledger.write(make_record(f"c{number}"))
            number += 1
        ledger.write(make_record("one more"))
        return "the disk reports an error" in str(ledger.disabled), ledger.errors, number > 3

    assert run(attempt) == "(True, 2, True)"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_removed_while_in_use(path: str, open_ledger, make_record, told, caplog, replaced: bool) -> None:
    ledger = open_ledger(path, on_lost=told.append)
    ledger.write(make_record("before"))
    os.unlink(path)
    if replaced:
        Path(path).touch()
    ledger._look_at = 0.0  # a second later
    disabled_at_once(ledger, make_record, told, caplog, "replaced" if replaced else "removed")


def test_every_lost_record_is_in_the_metric(tmp_path: Path, make_record) -> None:
    provider = MeterProvider([reader := InMemoryMetricReader()], shutdown_on_exit=False)
    ledger = open_configured(Settings(ledger=str(tmp_path)), Metrics(provider.get_meter("otel_tokens")))
    for number in range(3):
        ledger.write(make_record(f"c{number}"))
    found = {
        metric.name: metric.data.data_points[0].value
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if "ledger" in metric.name
    }
    assert found == {"otel_tokens.ledger.errors": 3}
    provider.shutdown()


def test_an_error_in_the_callback_stays_there(
    tmp_path: Path, open_ledger, make_record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_TOKENS_STRICT", raising=False)

    def fail(_: int) -> None:
        raise RuntimeError("the application's")

    ledger = open_ledger(tmp_path, on_lost=fail)
    ledger.write(make_record())
    assert ledger.errors == 1


def test_a_record_that_is_none_does_not_raise(path: str, open_ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_TOKENS_STRICT", raising=False)
    ledger = open_ledger(path)
    ledger.write(None)
    assert ledger.errors == 1
    assert ledger.disabled is None


# ---- another process holds the file: trouble that passes ---------------------------------------------------------
@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_rows_wait_while_another_process_holds_the_file(path: str, open_ledger, make_record, told, caplog) -> None:
    ledger = open_ledger(path, on_lost=told.append, busy_timeout=0.02)
    with held(path):
        for number in range(5):
            ledger.write(make_record(f"c{number}"))
        ledger.write(make_record("c0"))
        assert ledger.pending >= 5
        assert list(query.rows(path)) == []
    ledger.write(make_record("after"))
    assert [record.id for record in query.rows(path)] == ["c0", "c1", "c2", "c3", "c4", "after"]
    assert (ledger.pending, ledger.errors, ledger.disabled, told) == (0, 0, None, [])
    assert not ledger._impatient
    (message,) = errors(caplog)
    assert message == f"ledger {path}: another process holds the file; records wait in memory"


@pytest.mark.parametrize("end", ["flush", "close"])
def test_what_waits_is_written_at_the_end(path: str, open_ledger, make_record, end: str) -> None:
    ledger = open_ledger(path, busy_timeout=0.02)
    with held(path):
        ledger.write(make_record("strange", model=42))
        ledger.write(make_record("big", input=10**30))
        ledger.flush()
        assert ledger.pending == 2
    getattr(ledger, end)()
    assert [record.id for record in query.rows(path)] == ["strange", "big"]


def test_what_waits_at_the_very_end_is_lost_and_counted(path: str, open_ledger, make_record, told, caplog) -> None:
    ledger = open_ledger(path, on_lost=told.append, busy_timeout=0.02)
    with held(path):
        ledger.write(make_record("c1"))
        ledger.write(make_record("c2"))
        ledger.finish()
    assert (ledger.errors, ledger.pending, sum(told)) == (2, 0, 2)
    assert "2 records are lost" in errors(caplog)[-1]


def test_a_file_held_from_the_start(path: str, open_ledger, make_record) -> None:
    open_ledger(path).close()
    with held(path):
        ledger = open_ledger(path, busy_timeout=0.02)
        ledger.write(make_record("c1"))
        assert (ledger.pending, ledger.disabled) == (1, None)
    ledger.write(make_record("c2"))
    assert [record.id for record in query.rows(path)] == ["c1", "c2"]


def test_what_waits_is_bounded_and_what_falls_out_is_counted(
    path: str, open_ledger, make_record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKLOG", 3)
    ledger = open_ledger(path, busy_timeout=0.001)
    with held(path):
        for number in range(5):
            ledger.write(make_record(f"c{number}"))
    ledger.flush()
    assert [record.id for record in query.rows(path)] == ["c2", "c3", "c4"]
    assert ledger.errors == 2


def test_only_the_first_waits_long(path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path, busy_timeout=0.5)
    with held(path):
        ledger.write(make_record("c1"))
        (patience,) = ledger._connection.execute("PRAGMA busy_timeout").fetchone()
        assert patience == 100  # milliseconds
        ledger.write(make_record("c2"))
    assert ledger.pending == 2


def test_trouble_that_does_not_pass_counts_what_waits(path: str, open_ledger, make_record, told) -> None:
    ledger = open_ledger(path, on_lost=told.append, busy_timeout=0.02)
    with held(path):
        ledger.write(make_record("c1"))
        ledger.write(make_record("c2"))
    os.unlink(path)
    ledger._look_at = 0.0
    ledger.write(make_record("c3"))
    assert (ledger.errors, ledger.pending, sum(told)) == (3, 0, 3)
