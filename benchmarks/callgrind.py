"""Counts machine instructions with valgrind: the same number in every run, however busy the machine is.

A case is a function that takes a number of steps: it prepares what it needs, then makes so many steps. Each case runs
twice, with few and with many steps; the difference, divided, is what one step costs. One process under valgrind imports
everything, and each run is a fork of it. The garbage collector is off, as it runs at odd moments.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

FEW, MANY = 100, 300
Case = Callable[[int], object]


def available() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def instructions(cases: str) -> dict[str, float]:
    """Instructions of one step, by case. `cases` is "module:function", a function that returns the cases by name.

    Raises RuntimeError when a case fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out.%p"),
                *(sys.executable, "-m", "benchmarks.callgrind", cases),
            ],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError("\n".join(line for line in done.stderr.splitlines() if not line.startswith("==")))
    counted = {pid: int(count) for pid, count in re.findall(r"==(\d+)== Collected : (\d+)", done.stderr)}
    took: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        name, _, pid = line.rpartition("\t")
        took.setdefault(name, []).append(counted[pid])
    return {name: (many - few) / (MANY - FEW) for name, (few, many) in took.items()}


def _run(cases: Mapping[str, Case]) -> None:
    """Run each case in two forks, and print whose process was which: "name, tab, pid"."""
    gc.disable()
    for name, case in cases.items():
        for steps in (FEW, MANY):
            # Everything else that a fork counts is the same in both: what it inherits, and what it prepares.
            child = os.fork()
            if not child:
                _finish(case, steps)
            if os.waitpid(child, 0)[1]:
                raise SystemExit(f"{name} failed")
            print(name, child, sep="\t", flush=True)


def _finish(case: Case, steps: int) -> None:
    """Run a case and end the process."""
    try:
        case(steps)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    _run(getattr(importlib.import_module(module), function)())
