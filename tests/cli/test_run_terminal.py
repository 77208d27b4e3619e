"""`otel-tokens run` on a terminal: Ctrl-C, the live line, the program's own screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ROWS, COLUMNS = 20, 80
WAIT = 300.0


class Terminal:
    """A pseudo terminal with a program on it, in a session of its own, as a shell would start it."""

    def __init__(self, workshop: Any, command: list[str], env: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        program = [sys.executable, "-c", TAKE_TERMINAL, *command]
        self.process = subprocess.Popen(
            program, stdin=theirs, stdout=theirs, stderr=theirs, cwd=workshop.folder, env=env, start_new_session=True
        )
        os.close(theirs)
        self.fd = ours
        self.seen = ""

    def until(self, found: Callable[[str], object]) -> str:
        """Read until `found` likes what was seen, or the end."""
        end = time.monotonic() + WAIT
        while not found(self.seen) and time.monotonic() < end:
            if not select.select([self.fd], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: everybody has left
                break
            self.seen += data.decode(errors="replace")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        self.until(lambda _: False)  # until nobody has the terminal open any more
        return self.process.wait(WAIT)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait(WAIT)
        os.close(self.fd)


# A new session has no terminal yet: its leader takes the one on its standard input.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def on_terminal(workshop: Any) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(code: str, *options: str) -> Terminal:
        name = workshop.program(code)
        command = [sys.executable, "-m", "otel_tokens.cli", "run", "--ledger", str(workshop.ledger), *options]
        env = workshop.env | {"TERM": "xterm-256color"}
        env.pop("NO_COLOR", None)
        made.append(Terminal(workshop, [*command, sys.executable, name], env))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


LIVE = re.compile(r"otel-tokens · (\d+) calls? · \S+ in · \S+ out · \$\d+\.\d+")


def test_the_live_line_counts_and_goes(on_terminal: Callable[..., Terminal]) -> None:
    code = """
    chat(); print("first", flush=True)
    sys.stdin.readline()
    chat(2); print("second", flush=True)
    sys.stdin.readline()
    """
    terminal = on_terminal(code)
    terminal.until(lambda seen: LIVE.search(seen))
    terminal.type("\n")
    seen = terminal.until(lambda seen: "3 calls" in seen)
    assert [int(found) for found in LIVE.findall(seen)][-1] == 3
    assert f"\x1b[1;{ROWS - 1}r" in seen  # the program scrolls above the line
    terminal.type("\n")
    assert terminal.end() == 0
    after = terminal.seen.rpartition("· 3 calls")[2]
    assert f"\x1b[1;{ROWS}r" in after  # the whole terminal is the program's again
    assert "Calls by model" in after
    for line in terminal.seen.replace("\x1b7", "\n").partition("this table again")[0].splitlines():
        assert len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[78]", "", line)) <= COLUMNS


def test_nothing_is_drawn_before_the_first_call(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal("print('hello', flush=True); sys.stdin.readline()", "-q")
    terminal.until(lambda seen: "hello" in seen)
    terminal.type("\n")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.seen


def test_quiet_draws_nothing(on_terminal: Callable[..., Terminal], workshop: Any) -> None:
    terminal = on_terminal("import time; chat(); time.sleep(1.2); print('end')", "-q")
    assert terminal.end() == 0
    assert terminal.seen == "end\r\n"
    assert len(workshop.records) == 1


def test_ctrl_c_reaches_the_program_once(on_terminal: Callable[..., Terminal]) -> None:
    code = """
    import time
    count = 0
    while True:
        try:
            print("ready", flush=True)
            for _ in range(20 if count else 1200):
                time.sleep(0.05)  # Python may miss a signal that arrives in the instant before a long sleep
            break
        except KeyboardInterrupt:
            count += 1
    print("interrupted", count, flush=True)
    sys.exit(9)
    """
    terminal = on_terminal(code)
    terminal.until(lambda seen: "ready" in seen)
    terminal.type("\x03")
    assert terminal.end() == 9
    assert "interrupted 1" in terminal.seen


def test_a_program_that_ctrl_c_ends(on_terminal: Callable[..., Terminal], workshop: Any) -> None:
    terminal = on_terminal("import time; chat(); print('ready', flush=True)\nwhile True: time.sleep(0.05)")
    terminal.until(lambda seen: "ready" in seen)
    terminal.type("\x03")
    assert terminal.end() == -2
    assert "KeyboardInterrupt" in terminal.seen  # the program's own, not ours
    assert terminal.seen.count("Traceback") == 1
    assert "Calls by model" in terminal.seen


def test_the_terminal_is_the_programs(on_terminal: Callable[..., Terminal]) -> None:
    code = "print([os.isatty(n) for n in (0, 1, 2)], os.tcgetpgrp(0) == os.getpgrp(), input('name? '))"
    terminal = on_terminal(code, "-q")
    terminal.until(lambda seen: "name? " in seen)
    terminal.type("Ada\n")
    assert terminal.end() == 0
    assert "[True, True, True] True Ada" in terminal.seen
