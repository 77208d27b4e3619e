"""The file: how it is made, migrated and refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path

import pytest

from otel_tokens.errors import LedgerError
from otel_tokens.ledger import query, schema
from otel_tokens.ledger.schema import APPLICATION_ID, MIGRATIONS, VERSION, open_writer


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def version_1(path: str) -> None:
    """A file as the first schema made it, with a row."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute(
            "INSERT INTO calls(id, started, duration, outcome, provider, endpoint, operation, model, origin, input,"
            " output, currency, cost_status, cost_source, cost_total, sdk)"
            " VALUES('old', 1e9, 1, 'ok', 'openai', 'openai.chat', 'chat', 'gpt-4', 'provider', 7, 3,"
            " 'USD', 'priced', 'local', '0.5', '')"
        )
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("PRAGMA user_version=1")
        connection.commit()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_nobody_else_may_read_it(tmp_path: Path, umask: int, open_ledger, make_record) -> None:
    path = tmp_path / "new" / "folder" / "ledger.db"
    before = os.umask(umask if umask != 0o777 else 0o022)
    try:
        if umask == 0o777:
            path.parent.mkdir(parents=True)
            os.umask(umask)
        ledger = open_ledger(str(path))
        ledger.write(make_record())
    finally:
        os.umask(before)
    if umask != 0o777:
        assert mode(path.parent) == mode(path.parent.parent) == 0o700
    # A umask can take bits away, never give them.
    assert [mode(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")] == [0o600 & ~umask] * 3


def test_an_empty_file_becomes_a_ledger_of_ours_alone(path: str, open_ledger, make_record) -> None:
    Path(path).touch(0o644)
    open_ledger(path).write(make_record())
    assert mode(path) == 0o600
    assert [record.id for record in query.rows(path)] == ["c1"]


def test_the_file_is_set_up_for_many_writers_and_for_pruning(path: str) -> None:
    with closing(open_writer(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_an_older_file_is_migrated_and_keeps_its_rows(path: str, open_ledger, make_record) -> None:
    version_1(path)
    ledger = open_ledger(path)
    assert ledger.disabled is None
    ledger.write(make_record("new"))
    assert [(record.id, record.usage.input) for record in query.rows(path)] == [("old", 7), ("new", 1000)]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("SELECT count(*) FROM totals").fetchone() == (0,)


def test_an_older_file_can_be_read(path: str) -> None:
    version_1(path)
    assert [record.id for record in query.rows(path)] == ["old"]


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE extra(a); CREATE TABLE calls(a)"))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        open_writer(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
            "calls"
        }


def test_a_newer_file_is_refused_and_not_touched(path: str, open_ledger, make_record) -> None:
    open_writer(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={VERSION + 7}")
    before = Path(path).read_bytes()
    ledger = open_ledger(path)
    ledger.write(make_record())
    assert "newer" in (ledger.disabled or "")
    assert "update otel-tokens" in (ledger.disabled or "")
    assert ledger.errors == 1
    with pytest.raises(LedgerError, match="newer") as caught:
        list(query.rows(path))
    assert caught.value.path == path
    assert Path(path).read_bytes() == before


def test_another_programs_database_is_refused_and_not_touched(path: str, open_ledger, make_record) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE calls(a)")
    before = Path(path).read_bytes()
    ledger = open_ledger(path)
    ledger.write(make_record())
    assert "something else" in (ledger.disabled or "")
    with pytest.raises(LedgerError, match="something else"):
        query.aggregate(path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("old", [False, True], ids=["new file", "old file"])
def test_eight_processes_may_open_it_first(path: str, start, old: bool) -> None:
    if old:
        version_1(path)
    children = [start("open", path, "x", 0) for _ in range(8)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate()[1] for child in children] == [""] * 8
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (int(old),)


def test_a_ledger_made_by_another_process_in_mid_look_is_no_foreign_file(path: str) -> None:
    class Interrupted(sqlite3.Connection):
        """In the middle of a look at the empty file, somebody else tries to make it a ledger."""

        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "sqlite_master" in sql:
                with suppress(sqlite3.Error):  # held up, until the look is over
                    open_writer(path, timeout=0.05).close()
            return super().execute(sql, *args)

    Path(path).touch()
    with closing(sqlite3.connect(path, isolation_level=None, factory=Interrupted)) as looking:
        assert schema._check(looking, path) == 0
    open_writer(path).close()


def test_reading_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be taken for one" * 100)
    (tmp_path / "empty").touch()
    for name, words in {
        "nowhere.db": "no ledger here",
        "notes.txt": "not a ledger",
        "empty": "empty file",
        ".": "directory",
    }.items():
        with pytest.raises(LedgerError, match=words) as caught:
            list(query.rows(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)
    assert not (tmp_path / "nowhere.db").exists()


def test_a_copy_in_a_read_only_place_can_be_read(as_somebody, path: str, open_ledger, make_record) -> None:
    ledger = open_ledger(path)
    ledger.write(make_record())
    ledger.close()
    folder, run = as_somebody
    copy = shutil.copy(path, f"{folder}/ledger.db")
    os.chmod(copy, 0o444)
    os.chmod(folder, 0o555)
    assert run(lambda: [record.id for record in query.rows(copy)]) == "['c1']"


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_ledger, make_record) -> None:
    """No name means a database in memory, and the directory may change."""
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "with space?mode=ro#x%41.db", "ünï.db"):
        ledger = open_ledger(name)
        ledger.write(make_record())
        assert [record.id for record in query.rows(tmp_path / name)] == ["c1"]
    ledger.close()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    ledger.write(make_record("c2"))
    assert len(list(query.rows(tmp_path / "ünï.db"))) == 2
