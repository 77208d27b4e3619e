"""A program that is terminated hands its telemetry over first, within two seconds, whatever the collector does."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import pytest

LIMIT = 60.0  # seconds for an end that takes two; the machine may be busy


# Not one long sleep: Python may miss a signal that arrives in the instant before it.
WAITS = """
import time
chat(2)
ready()
while True:
    time.sleep(0.05)
"""


def test_sigterm_flushes_before_the_end(workshop: Any, collector: Any) -> None:
    process = workshop.start_program(WAITS, "--otlp", collector.url)
    start = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == -15
    assert time.monotonic() - start < LIMIT
    assert b"gen_ai.client.inference.usage.input_tokens" in collector.bodies("/v1/metrics")
    assert collector.bodies("/v1/traces").count(b"chat gpt-5.4") == 2
    assert "Traceback" not in err


def test_a_silent_collector_does_not_hold_the_end_up(workshop: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        endless = {"OTEL_EXPORTER_OTLP_TIMEOUT": "100000", "OTEL_TOKENS_FLUSH_TIMEOUT": "2"}
        process = workshop.start_program(WAITS, "-q", "--otlp", url, env=endless)
        start = time.monotonic()
        process.terminate()
        process.communicate(timeout=300)
    assert process.returncode == -15
    assert time.monotonic() - start < LIMIT
    assert len(workshop.records) == 2


def test_a_programs_own_handler_is_its_own(workshop: Any, collector: Any) -> None:
    code = """
    import signal, time
    def stop(number, frame):
        print("stopping", flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, stop)
    chat()
    ready()
    while True:
        time.sleep(0.05)
    """
    process = workshop.start_program(code, "--otlp", collector.url)
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (3, "stopping\n")
    assert b"input_tokens" in collector.bodies("/v1/metrics")  # by atexit


def test_a_handler_that_is_put_back_and_raised_again(workshop: Any, collector: Any) -> None:
    # As uvicorn ends: it restores the handlers that it found, and raises the signal once more.
    code = """
    import signal, threading
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    chat()
    ready()
    while not stop.wait(0.05):
        pass
    signal.signal(signal.SIGTERM, before)
    signal.raise_signal(signal.SIGTERM)
    """
    process = workshop.start_program(code, "-q", "--otlp", collector.url)
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == -15
    assert b"input_tokens" in collector.bodies("/v1/metrics")


def test_terminated_workers_flush_too(workshop: Any, collector: Any) -> None:
    code = """
    import multiprocessing, time
    def work():
        chat(model="worker-model")
        os.write(1, b"ready\\n")
        while True:
            time.sleep(0.05)
    if __name__ == "__main__":
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        sys.stdin.readline()
        worker.terminate()
        worker.join()
        print(worker.exitcode)
    """
    process = workshop.start_program(code, "-q", "--otlp", collector.url)
    out, err = process.communicate("go\n", timeout=300)
    assert out == "-15\n", err
    assert b"worker-model" in collector.bodies("/v1/metrics")


def test_one_process_of_a_run_serves_metrics(workshop: Any, free_port: int) -> None:
    workshop.program("chat()", "child.py")
    code = """
    import subprocess, urllib.request
    chat()
    subprocess.run([sys.executable, "child.py"], check=True)
    url = f"http://127.0.0.1:{os.environ['OTEL_TOKENS_PROMETHEUS_PORT']}/metrics"
    for _ in range(2):
        text = urllib.request.urlopen(url, timeout=300).read().decode()
    print(sum("otel_tokens_calls" in line for line in text.splitlines()) > 0)
    """
    done = workshop.run_program(code, options=["--port", str(free_port)])
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert "cannot serve" not in done.stderr
    assert len(workshop.records) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the order of a group's signals is Linux's")
def test_a_signal_to_the_whole_group_ends_once(workshop: Any) -> None:
    import os
    import signal

    code = """
    import signal, time
    def caught(number, frame):
        os.write(1, b"caught\\n")
        time.sleep(0.2)
        sys.exit(5)
    signal.signal(signal.SIGTERM, caught)
    ready()
    while True:
        time.sleep(0.05)
    """
    process = workshop.start_program(code, "-q", start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 5
    assert out.startswith("caught\n")
