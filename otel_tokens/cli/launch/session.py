"""What one `otel-tokens run` tells the Python processes below it, in one environment variable, and they to it."""

from __future__ import annotations

# Read at the start of every Python process of a run: only what start-up imports anyway, and json.
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

VARIABLE = "OTEL_TOKENS_RUN"


class Session(NamedTuple):
    """One run. `tag` and `id` mark its calls: a run inside a run has a tag of its own and keeps the outer ones.

    `folder` is private to the run and gone after it. `tags` are on every call, `budget` is a cap in USD for all
    calls together or None, `sdks` are the packages whose import starts the metering.
    """

    id: str
    folder: str
    tag: str = "run"
    tags: Mapping[str, str] = {}
    budget: str | None = None
    sdks: tuple[str, ...] = ()

    def to_env(self) -> str:
        """As the value of the variable."""
        return json.dumps(self._asdict())

    @property
    def notes_file(self) -> str:
        """Where processes note what became of them: a JSON object per line."""
        return os.path.join(self.folder, "notes")  # noqa: PTH118

    def note(self, state: str, error: str = "") -> None:
        """Tell the run about this process: "seen", then "on" (metered) or "failed"; "missing" is said elsewhere."""
        line = json.dumps({"pid": os.getpid(), "python": sys.executable, "state": state, "error": error})
        # One short write with O_APPEND: lines of different processes do not mix. The run may be over by now.
        with contextlib.suppress(OSError):
            place = os.open(self.notes_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(place, line.encode() + b"\n")
            finally:
                os.close(place)

    def notes(self) -> list[dict[str, Any]]:
        """What the processes noted so far."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(OSError), open(self.notes_file, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                with contextlib.suppress(ValueError):
                    value: Any = json.loads(line)
                    if isinstance(value, dict):
                        found.append(cast("dict[str, Any]", value))
        return found


def current(env: Mapping[str, str] | None = None) -> Session | None:
    """The run that this process belongs to, or None."""
    text = (os.environ if env is None else env).get(VARIABLE)
    if not text:
        return None
    try:
        raw: dict[str, Any] = json.loads(text)
        session = Session(**raw)
        return session._replace(sdks=tuple(session.sdks), tags=dict(session.tags))
    except (ValueError, TypeError):
        return None
