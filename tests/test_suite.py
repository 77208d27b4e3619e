"""What `conftest.py` promises to every test: no skip passes in CI, and children get the usual signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest
@pytest.mark.skip(reason="by its mark")
def test_marked(): ...
def test_late(): pytest.skip("late")
@pytest.fixture
def missing(): pytest.skip("by a fixture")
def test_fixture(missing): ...
@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""
SIGNALS = """
import signal, subprocess, sys
code = "import signal; print(signal.getsignal(signal.SIGHUP).name, signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
def test_child():
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "SIG_DFL set()\\n"
    signal.raise_signal(signal.SIGHUP)  # what this process was to ignore it goes on ignoring
"""


def run(folder: Path, files: dict[str, str], *, ignored: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    """A run of its own with this suite's conftest, as under `nohup` if `ignored`."""
    (folder / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in files.items():
        (folder / name).write_text(text)

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."],
        cwd=folder,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        preexec_fn=ignore if ignored else None,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("ci", "came"), [("true", "1 failed, 1 xfailed, 3 errors in"), ("", "4 skipped, 1 xfailed in")]
)
def test_a_skip_is_a_failure_in_ci(tmp_path: Path, ci: str, came: str) -> None:
    module = "import pytest\npytest.importorskip('no_such_module')\n"
    done = run(tmp_path, {"test_skips.py": SKIPS, "test_module.py": module}, CI=ci)
    assert done.stdout.splitlines()[-1].startswith(came), done.stdout
    assert (done.returncode != 0) is bool(ci)


def test_signals_ignored_by_the_parent_reach_children(tmp_path: Path) -> None:
    done = run(tmp_path, {"test_signals.py": SIGNALS}, ignored=True)
    assert done.returncode == 0, done.stdout
