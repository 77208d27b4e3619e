"""`opentelemetry-instrument python app.py`, with nothing but environment variables and an application as it is."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from otel_tokens import conventions as c

WAIT = 300.0  # seconds: only a hang takes as long

APP = """
import asyncio

ASK = dict(model="claude-opus-4-1", max_tokens=50, messages=[{"role": "user", "content": "Hello."}])
CHAT = dict(model="gpt-4o", messages=[{"role": "user", "content": "Hello."}])

async def amain():
    import anthropic, openai
    async with openai.AsyncOpenAI(base_url=os.environ["MODEL_URL"] + "/v1", api_key="k") as c:
        chunks = [chunk async for chunk in await c.chat.completions.create(**CHAT, stream=True)]
        print(len(chunks), "chunks")
    async with anthropic.AsyncAnthropic(base_url=os.environ["MODEL_URL"], api_key="k") as a:
        async with a.messages.stream(**ASK) as stream:
            print((await stream.get_final_message()).usage.output_tokens, "tokens")

def main():
    import anthropic
    with anthropic.Anthropic(base_url=os.environ["MODEL_URL"], api_key="k") as a:
        print(a.messages.create(**ASK).content[0].text)
    with client() as c:
        print(c.chat.completions.create(**CHAT).choices[0].message.content)
    asyncio.run(amain())

if __name__ == "__main__":
    main()
"""


def test_spans_and_metrics_arrive(workshop: Any, otel_instrument: list[str]) -> None:
    name = workshop.program(APP)
    bare = workshop.run(sys.executable, name)
    assert workshop.collector.ours() == []
    workshop.server.requests.clear()
    metered = workshop.run(*otel_instrument, sys.executable, name)
    assert metered.stdout == bare.stdout
    assert metered.stderr == ""
    workshop.check(4)
    spans = workshop.collector.ours()
    # Anthropic's own spans carry ours; OpenAI's SDK has none.
    assert sorted(span.scope for span in spans) == ["com.anthropic.sdk.python"] * 2 + [c.SCOPE] * 2
    assert len(workshop.collector.spans) == 4
    for span in spans:
        assert span.resource["service.name"] == "shop"
        assert span.attributes[c.USAGE_INPUT] == 1000
        assert span.attributes[c.COST_TOTAL] > 0
        assert span.attributes[c.USAGE_ORIGIN] == "provider"
    assert workshop.collector.total(c.TOKENS_INPUT.name, **{c.PROVIDER: "anthropic"}) == 2000
    assert workshop.collector.total(c.TOKENS_INPUT.name, **{c.PROVIDER: "openai"}) == 2000


def test_our_prometheus_endpoint(workshop: Any, free_port: int, otel_instrument: list[str]) -> None:
    from urllib.request import urlopen

    code = """
    chat(2)
    print("ready", flush=True)
    sys.stdin.readline()
    chat(3)
    print("ready", flush=True)
    sys.stdin.readline()
    """
    env = {
        "OTEL_METRICS_EXPORTER": "otel_tokens_prometheus",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port),
    }
    process = workshop.start(*otel_instrument, sys.executable, workshop.program(code), env=env)

    def scrape() -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=WAIT) as response:
            lines = response.read().decode().splitlines()
        return {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(("gen_ai_client_inference_usage_input_tokens", "otel_tokens_cost"))
        }

    assert process.stdout.readline() == "ready\n", process.stderr.read()
    first, second = scrape(), scrape()
    process.stdin.write("on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    third = scrape()
    process.communicate("end\n", timeout=WAIT)
    assert process.returncode == 0
    tokens = next(name for name in first if "input_tokens" in name)
    cost = next(name for name in first if "cost" in name)
    assert [found[tokens] for found in (first, second, third)] == [0, 2000, 5000]
    assert first[cost] == 0
    assert third[cost] == pytest.approx(second[cost] * 2.5)
    workshop.check_ledger(5)


def test_switched_off_by_name(workshop: Any, otel_instrument: list[str]) -> None:
    code = """
    chat(2)
    import openai._base_client as base
    print(type(vars(base.SyncAPIClient)["request"]).__name__, "otel_tokens" in sys.modules)
    """
    env = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_tokens"}
    done = workshop.run(*otel_instrument, sys.executable, workshop.program(code), env=env)
    assert done.stdout == "function False\n"
    assert workshop.calls == 2
    assert workshop.records == []
    assert workshop.collector.ours() == []
    assert workshop.collector.total(c.CALLS.name) == 0


def test_switched_off_by_our_setting(workshop: Any, otel_instrument: list[str]) -> None:
    done = workshop.run(
        *otel_instrument, sys.executable, workshop.program("chat(2)"), env={"OTEL_TOKENS_ENABLED": "false"}
    )
    assert done.stderr == ""
    assert workshop.records == []
    assert workshop.collector.ours() == []


def test_a_mistake_in_the_configuration_is_said_and_the_application_runs(
    workshop: Any, otel_instrument: list[str]
) -> None:
    done = workshop.run(
        *otel_instrument, sys.executable, workshop.program("chat(2)"), env={"OTEL_TOKENS_LABEL_LIMIT": "many"}
    )
    assert "OTEL_TOKENS_LABEL_LIMIT" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert workshop.calls == 2


def test_an_application_that_instruments_itself_as_well(workshop: Any, otel_instrument: list[str]) -> None:
    code = """
    import otel_tokens
    otel_tokens.instrument()
    chat(2)
    otel_tokens.OtelTokensInstrumentor().instrument()
    chat(1)
    """
    workshop.run(*otel_instrument, sys.executable, workshop.program(code))
    workshop.check(3)


def test_python_children_are_metered_too(workshop: Any, otel_instrument: list[str]) -> None:
    workshop.program("chat(2)", "child.py")
    code = """
    import subprocess
    chat(1)
    subprocess.run([sys.executable, "child.py"], check=True)
    """
    workshop.run(*otel_instrument, sys.executable, workshop.program(code))
    workshop.check(3)
    assert len(workshop.collector.by_process(c.CALLS.name)) == 2


def test_a_run_around_it_counts_once_with_its_tags(workshop: Any, otel_instrument: list[str]) -> None:
    """The launcher's `sitecustomize` hides ours: its instrumentor joins the run."""
    cli = [sys.executable, "-m", "otel_tokens.cli", "run", "--quiet", "--tag", "team=blue"]
    workshop.run(*cli, *otel_instrument, sys.executable, workshop.program("chat(2)"))
    workshop.check(2)
    assert {(record.tags["team"], "run" in record.tags) for record in workshop.records} == {("blue", True)}


def test_an_sdk_that_is_never_imported_costs_nothing() -> None:
    """Neither imports nor threads: prices are loaded once there is an SDK whose calls will want them."""
    code = """
        import sys, threading
        import otel_tokens
        otel_tokens.instrument(config=False, ledger=False)
        heavy = ("openai", "anthropic", "genai_prices", "wrapt", "otel_tokens.pricing.catalog", "sqlite3", "redis")
        print([name for name in heavy if name in sys.modules], threading.active_count())
        import openai
        print("loading" if any(t.name == "otel-tokens-prices" for t in threading.enumerate())
              or "genai_prices" in sys.modules else "not loading")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=WAIT
    )
    assert done.stdout.splitlines() == ["[] 1", "loading"]
