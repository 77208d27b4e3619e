"""Python imports this at start-up because `otel-tokens run` puts its folder first on PYTHONPATH.

It leaves nothing behind that the program could notice: its folder leaves `sys.path` (the variable stays, for Python
processes that this one starts), and a `sitecustomize` that it hides is run and takes its name.
"""

from __future__ import annotations

# Every Python process of a run pays for this file: nothing is imported that start-up has not imported anyway.
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

HERE = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120


def _is_here(entry: str) -> bool:
    try:
        return bool(entry) and os.path.realpath(entry) == HERE
    except (OSError, ValueError, TypeError):
        return False


def _chain() -> None:
    """Run the `sitecustomize` that would have run without us; its errors are its own, as without us."""
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    ours, module = sys.modules["sitecustomize"], module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules["sitecustomize"] = ours  # the import system takes it away itself
        raise


def _start() -> None:
    try:
        from otel_tokens.cli.launch.child import start
    except Exception as error:  # a Python without otel_tokens: the program runs on, the report says why
        import json

        # The same words as child.note(), which this Python does not have.
        try:
            place = os.path.join(json.loads(os.environ["OTEL_TOKENS_RUN"])["folder"], "notes")  # noqa: PTH118
            line = {"pid": os.getpid(), "python": sys.executable, "state": "missing", "error": str(error)}
            with open(place, "a", encoding="utf-8") as notes:  # noqa: PTH123
                notes.write(json.dumps(line) + "\n")
        except (KeyError, ValueError, OSError, TypeError):
            pass
        return
    start()


sys.path[:] = [entry for entry in sys.path if not _is_here(entry)]
try:
    _chain()
finally:
    _start()
