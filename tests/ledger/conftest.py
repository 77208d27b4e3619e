"""Fixtures of the ledger's tests: records, a place for a ledger, processes that write to it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import otel_tokens.values
from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import Record

CHILD = Path(__file__).with_name("child.py")
_ROOT = Path(otel_tokens.values.__file__).parent.parent


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """`make_record(id, **changes)`: see child.py."""
    spec = importlib.util.spec_from_file_location("ledger_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.record


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a ledger may be made."""
    return str(tmp_path / "ledger.db")


@pytest.fixture
def open_ledger() -> Iterator[Callable[..., Ledger]]:
    """`open_ledger(path, **options)`: a ledger, closed at the end."""
    opened: list[Ledger] = []

    def make(path: str, **options: object) -> Ledger:
        opened.append(Ledger(path, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(mode, path, name, count)`: child.py as a process, killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: object) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", str(CHILD), *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def as_somebody() -> Iterator[tuple[str, Callable[[Callable[[], object]], str]]]:
    """A folder of an ordinary user, and a function that runs something as that user: root may do anything.

    The function forks; it gives `repr` of the result, or of the exception.
    """
    user = os.getuid() or 65534
    folder = tempfile.mkdtemp(prefix="otel-tokens-test-")
    os.chown(folder, user, -1)

    def run(step: Callable[[], object]) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                if os.getuid() != user:
                    os.setuid(user)
                said = repr(step())
            except BaseException as error:
                said = repr(error)
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said

    yield folder, run
    for root, _, _ in os.walk(folder):
        os.chmod(root, 0o700)
    shutil.rmtree(folder)
