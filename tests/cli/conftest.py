"""The command line as users start it: a process of its own, with an environment of its own."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from otel_tokens.demo.server import ModelServer
from otel_tokens.ledger.query import rows
from otel_tokens.values import Record

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "otel_tokens.cli"]
WAIT = 300.0  # seconds after which a process that should have ended is a failure

# What every program under test begins with: `chat(n)` makes n calls of two tokens or so.
PREAMBLE = """
import os, sys

def client():
    import openai
    return openai.OpenAI(base_url=os.environ["MODEL_URL"] + "/v1", api_key="test", max_retries=0)

def chat(times=1, model="gpt-5.4"):
    with client() as c:
        for _ in range(times):
            c.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])

def ready():
    print("ready", flush=True)
"""


class Workshop:
    """A folder with a program, a configuration that names the loopback server, and a ledger."""

    def __init__(self, folder: Path, server: ModelServer) -> None:
        self.folder = folder
        self.server = server
        self.ledger = folder / "ledger.db"
        self.config = folder / "otel-tokens.yaml"
        host = server.url.removeprefix("http://")
        self.config.write_text(f"hosts:\n  - {{match: '{host}', provider: openai}}\nprometheus: false\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OPENAI_", "ANTHROPIC_"))}
        self.env = kept | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "MODEL_URL": server.url,
            "OTEL_TOKENS_STRICT": "1",
            "OTEL_TOKENS_FLUSH_TIMEOUT": "120",  # the machine may be busy
            "XDG_STATE_HOME": str(folder / "state"),
            "HOME": str(folder),
            "NO_PROXY": "127.0.0.1",
        }
        self.running: list[subprocess.Popen[str]] = []

    def program(self, code: str, name: str = "app.py", preamble: str = PREAMBLE) -> str:
        """A Python file in the folder; returns its name."""
        (self.folder / name).write_text(preamble + textwrap.dedent(code))
        return name

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """`otel-tokens ARGS`, started; standard streams are pipes."""
        env = self.env | options.pop("env", {})
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([*CLI, *args], cwd=self.folder, env=env, text=True, **{**pipes, **options})
        self.running.append(process)
        return process

    def __call__(self, *args: str, typed: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """`otel-tokens ARGS`, run to its end."""
        process = self.start(*args, **options)
        out, err = process.communicate(typed, timeout=WAIT)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def here(self, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`otel-tokens ARGS` in this process: quicker, for commands that start nothing and leave nothing."""
        from otel_tokens.cli.group import cli

        wanted = {**self.env, **(env or {})}
        gone = dict.fromkeys(name for name in os.environ if name not in wanted)
        with contextlib.chdir(self.folder):
            done = CliRunner(env={**gone, **wanted}).invoke(cli, list(args), prog_name="otel-tokens")
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    def run(self, *command: str, options: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
        """`otel-tokens run` with the folder's ledger."""
        return self("run", "--ledger", str(self.ledger), *options, *command, **more)

    def run_program(self, code: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """A Python program under `otel-tokens run`."""
        return self.run(sys.executable, self.program(code), **more)

    def start_program(self, code: str, *options: str, **more: Any) -> subprocess.Popen[str]:
        """The same, started, and waited for until it says that it is ready."""
        name = self.program(code)
        process = self.start("run", "--ledger", str(self.ledger), *options, sys.executable, name, **more)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @property
    def records(self) -> list[Record]:
        """What the ledger holds."""
        return list(rows(self.ledger)) if self.ledger.exists() else []

    def close(self) -> None:
        """Leave no process behind."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=WAIT)


@pytest.fixture
def workshop(tmp_path: Path, make_server: Callable[..., ModelServer]) -> Iterator[Workshop]:
    """A folder to run the command line in."""
    made = Workshop(tmp_path, make_server())
    yield made
    made.close()


class Collector:
    """An OTLP/HTTP collector that keeps what it is sent, by path."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.arrived = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((self.path, gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def bodies(self, path: str) -> bytes:
        return b"".join(body for place, body in self.got if place == path)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _plain_signals() -> Iterator[None]:
    """A test runner started in the background ignores Ctrl-C, and its children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
