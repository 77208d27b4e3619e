"""The live line of `otel-tokens run`: the last row of the terminal, kept out of the reach of the program's output.

The terminal is told to scroll only the rows above it, as apt does for its progress bar. Nothing is touched before
the first call, and nothing is drawn unless the figures changed: a program that fills the screen by itself is left
alone while it makes no calls (`--quiet` or `live: false` leave it alone altogether).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from otel_tokens.cli.launch.figures import Figures
from otel_tokens.text import printable

_EVERY = 0.5  # seconds between two looks
_SHARE = 20  # a look may take one twentieth of the time
_LEAST_ROWS = 6
_SAVE, _RESTORE, _CLEAR, _INDEX, _UP = "\x1b7", "\x1b8", "\x1b[2K", "\x1bD", "\x1b[1A"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class LiveLine:
    """Draws what `read` returns on the terminal `fd`; `tick` never raises."""

    def __init__(self, fd: int, read: Callable[[], Figures]) -> None:
        self._fd = fd
        self._read = read
        self._shown: tuple[Figures, os.terminal_size] | None = None
        self._off = False

    def tick(self) -> float:
        """Look, draw if something changed; returns the seconds until the next look."""
        if self._off:
            return 3600.0
        start = time.monotonic()
        try:
            self._look()
        except Exception:
            self._off = True  # a line that cannot be drawn is no reason to disturb anybody
        return max(_EVERY, _SHARE * (time.monotonic() - start))

    def close(self) -> None:
        """Give the whole terminal back."""
        if self._shown is None:
            return
        self._shown = None
        with contextlib.suppress(OSError):
            rows = os.get_terminal_size(self._fd).lines
            self._write(f"{_SAVE}\x1b[1;{rows}r\x1b[{rows};1H{_CLEAR}{_RESTORE}")

    def _look(self) -> None:
        figures, size = self._read(), os.get_terminal_size(self._fd)
        if figures.calls == 0 or (figures, size) == self._shown:
            return
        if size.lines < _LEAST_ROWS or not self._in_front():
            return
        text = ""
        before = self._shown[1] if self._shown is not None else None
        if before != size:
            if before is not None and before.lines < size.lines:
                text = f"{_SAVE}\x1b[{before.lines};1H{_CLEAR}{_RESTORE}"
            # Make room at the bottom, scroll above it only, and go back to where the program was writing: one row
            # up in the same column, as the index moves down without going to the first column.
            text += f"{_INDEX}{_SAVE}\x1b[1;{size.lines - 1}r{_RESTORE}{_UP}"
        line = f" otel-tokens · {printable(figures.line())}"[: size.columns - 1]
        self._write(f"{text}{_SAVE}\x1b[{size.lines};1H{_CLEAR}{_DIM}{line}{_PLAIN}{_RESTORE}")
        self._shown = (figures, size)

    def _in_front(self) -> bool:
        """Whether the terminal is ours now: a job in the background keeps silent."""
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        return False

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:  # in one go, if the terminal takes it: the program writes in between otherwise
            data = data[os.write(self._fd, data) :]
