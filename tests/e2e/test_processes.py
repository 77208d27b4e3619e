"""Forks, pools and children: summed over all processes, OTLP and the ledger have each call exactly once."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from otel_tokens import conventions as c

WAIT = 300.0  # seconds: only a hang takes as long
CLI = [sys.executable, "-m", "otel_tokens.cli", "run", "--quiet"]
STARTS = ("run", "opentelemetry-instrument", "instrument()")


def pairs(**starts: str) -> Any:
    """Parameters `launch` and `method`: each way to start a program with one way to start its children.

    The three tests that use this have all nine pairs between them: what a child inherits depends on the pair, not on
    what the child then does.
    """
    found = [(STARTS[("run", "distro", "call").index(name)], method) for name, method in starts.items()]
    return pytest.mark.parametrize(("launch", "method"), found, indirect=["launch"])


def starts(*names: str) -> Any:
    """Parameter `launch`: two of the ways, the one with OpenTelemetry's own set-up among them.

    What is under test happens inside the program: it depends on who set the exporters up, not on who started it.
    """
    return pytest.mark.parametrize("launch", names, indirect=True)


@pytest.fixture(params=STARTS)
def launch(request: pytest.FixtureRequest, workshop: Any) -> Any:
    """Runs a program that is metered in one of the three ways."""
    if request.param == "run":
        return lambda code: workshop.run(*CLI, sys.executable, workshop.program(code))
    if request.param == "opentelemetry-instrument":
        command = request.getfixturevalue("otel_instrument")
        return lambda code: workshop.run(*command, sys.executable, workshop.program(code))
    # With `spawn` the main module is imported again: this line then runs in each child.
    import_line = "\nimport otel_tokens\notel_tokens.instrument()\n"
    return lambda code: workshop.run(sys.executable, workshop.program(import_line + _dedent(code)))


def _dedent(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


@starts("opentelemetry-instrument", "instrument()")
def test_fork(workshop: Any, launch: Any) -> None:
    """Children that end as Python programs do. The parent makes calls before, between and after."""
    launch("""
    chat(2)
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            chat(number + 1)
            sys.exit(0)
        children.append(pid)
    chat(1)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    chat(1)
    """)
    workshop.check(10)
    assert sorted(workshop.collector.by_process(c.CALLS.name).values()) == [1, 2, 3, 4]


@starts("opentelemetry-instrument", "run")
def test_children_that_leave_at_once(workshop: Any, launch: Any) -> None:
    """RQ forks a child for each job, Celery one for each worker; both end by os._exit."""
    launch("""
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            if number:
                chat(number)
            os._exit(number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == number
    chat(4)
    os._exit(0)
    """)
    workshop.check(7)
    assert sorted(workshop.collector.by_process(c.CALLS.name).values()) == [1, 2, 4]


def test_the_flush_at_an_end_that_passes_atexit_by_takes_as_long_as_it_may(workshop: Any) -> None:
    workshop.collector.delay = 2.5  # more than the two seconds that an end may take without OTEL_TOKENS_FLUSH_TIMEOUT
    code = "\nimport otel_tokens\notel_tokens.instrument()\nchat(1)\nos._exit(0)\n"
    workshop.run(sys.executable, workshop.program(code))
    workshop.check(1)


@pairs(run="spawn", distro="forkserver", call="fork")
def test_pools(workshop: Any, launch: Any, method: str) -> None:
    """Children of `multiprocessing` leave by os._exit (fork) or start as new interpreters (spawn, forkserver)."""
    launch(f"""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    if __name__ == "__main__":
        chat(1)
        context = multiprocessing.get_context({method!r})
        with context.Pool(2) as pool:
            pool.map(chat, [1, 2, 1, 1])
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            list(executor.map(chat, [1, 1]))
        process = context.Process(target=chat, args=(2,))
        process.start()
        process.join()
    """)
    workshop.check(1 + 9)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_greenlets(workshop: Any, store: str) -> None:
    """A program that turns its threads into greenlets does so when the metering is on already."""
    where = "memory" if store == "memory" else f"sqlite:///{workshop.folder}/budgets.db"
    with (workshop.folder / "otel-tokens.yaml").open("a") as settings:
        settings.write(f"store: {where}\nbudgets: [{{name: cap, calls: 100}}]\n")
    program = """
    from gevent import monkey

    monkey.patch_all()
    import gevent

    def work():
        chat(1)
        with client() as c:
            messages = [{"role": "user", "content": "Hello."}]
            for chunk in c.chat.completions.create(model="gpt-4o", messages=messages, stream=True):
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(work) for _ in range(8)], raise_error=True)
    """
    workshop.run(*CLI, sys.executable, workshop.program(program))
    workshop.check_ledger(16)


@starts("opentelemetry-instrument", "instrument()")
def test_a_child_in_the_middle_of_the_parents_calls(workshop: Any, launch: Any) -> None:
    """What runs while the process forks (streams, threads, background work) is recorded once, by the parent."""
    launch("""
    import threading
    chat(1)  # pydantic builds its models under a lock, in the middle of which no other thread may fork
    c = client()
    messages = [{"role": "user", "content": "Hello."}]
    stream = c.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
    next(stream)

    def ask(own):
        for _ in range(4):
            own.chat.completions.create(model="gpt-4o", messages=messages)

    # Clients that are there: to make one is OpenSSL's work, in the middle of which no other thread may fork.
    clients = [client() for _ in range(3)]
    threads = [threading.Thread(target=ask, args=(own,)) for own in clients]
    for thread in threads:
        thread.start()
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            # The child drops what it inherited, and makes a call of its own.
            chat(1)
            del stream
            import gc
            gc.collect()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    for thread in threads:
        thread.join()
    assert len(list(stream)) > 2
    for own in (c, *clients):
        own.close()
    """)
    workshop.check(1 + 1 + 12 + 3)


@pairs(run="fork", distro="spawn", call="forkserver")
def test_a_pool_that_is_terminated(workshop: Any, launch: Any, method: str) -> None:
    """`with Pool()` ends its workers by SIGTERM: each exports what it has before it ends."""
    launch(f"""
    import multiprocessing
    if __name__ == "__main__":
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            pool.map(chat, [1, 1, 1, 1], chunksize=1)
    """)
    workshop.check(4)


@pairs(run="forkserver", distro="fork", call="spawn")
def test_children_that_are_the_first_to_import_an_sdk(workshop: Any, launch: Any, method: str) -> None:
    launch(f"""
    import multiprocessing
    if __name__ == "__main__":
        child = multiprocessing.get_context({method!r}).Process(target=chat, args=(2,))
        child.start()
        child.join()
        assert child.exitcode == 0
    """)
    workshop.check(2)


def test_a_program_with_providers_of_its_own(workshop: Any) -> None:
    """They flush at the end of the parent. A forked child ends without that."""
    workshop.run(
        sys.executable,
        workshop.program("""
        import multiprocessing
        from opentelemetry import metrics, trace
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        import otel_tokens

        tracers = TracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
        otel_tokens.instrument()
        chat(1)
        child = multiprocessing.get_context("fork").Process(target=chat, args=(2,))
        child.start()
        child.join()
        """),
    )
    workshop.check(3)


@pytest.mark.parametrize("preload", [False, True], ids=["each worker", "preload"])
@pytest.mark.parametrize("start", STARTS[1:])  # servers under `otel-tokens run` are in tests/cli/test_servers.py
def test_gunicorn(workshop: Any, free_port: int, request: pytest.FixtureRequest, start: str, preload: bool) -> None:
    code = """
    import openai
    shared = client()

    def app(environ, start_response):
        answer = shared.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello."}])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]
    """
    command = server_command(workshop, request, start, code)
    options = ["--preload"] if preload else []
    process = workshop.start(
        *command, "gunicorn", "-w", "2", "-b", f"127.0.0.1:{free_port}", "--no-control-socket", *options, "app:app"
    )
    serve(workshop, process, free_port, 12)
    workshop.check(12)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", STARTS[1:])
def test_uvicorn(workshop: Any, free_port: int, request: pytest.FixtureRequest, start: str, workers: int) -> None:
    """uvicorn's processes end by the signal itself: `atexit` does not run in them."""
    code = """
    import openai
    shared = openai.AsyncOpenAI(base_url=os.environ["MODEL_URL"] + "/v1", api_key="k", max_retries=0)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await shared.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello."}])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
    """
    command = server_command(workshop, request, start, code)
    options = ["--workers", str(workers)] if workers > 1 else []
    process = workshop.start(*command, "uvicorn", *options, "--lifespan", "off", "--port", str(free_port), "app:app")
    serve(workshop, process, free_port, 12)
    workshop.check(12)


def server_command(workshop: Any, request: pytest.FixtureRequest, start: str, code: str) -> list[str]:
    """Writes the application; what to put before the server's command."""
    if start == "instrument()":
        code = "\nimport otel_tokens\notel_tokens.instrument()\n" + _dedent(code)
    workshop.program(code)
    if start == "opentelemetry-instrument":
        return request.getfixturevalue("otel_instrument")
    return []


def serve(workshop: Any, process: Any, port: int, requests: int) -> None:
    """Ask the server until every worker has answered, and end it by SIGTERM."""
    import urllib.error
    import urllib.request

    def up() -> bool:
        import socket

        assert process.poll() is None, process.communicate()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True

    workshop.wait_until(up, "the server does not come up")
    pids = set()
    for _ in range(requests):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT) as response:
            pids.add(response.read())
    assert 1 <= len(pids) <= 2
    process.terminate()
    _, err = process.communicate(timeout=WAIT)
    assert "Traceback" not in err, err
