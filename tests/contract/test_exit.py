"""What is open when the metering, or the process, ends: recorded once, by whom it belongs to."""

from __future__ import annotations

import os
from typing import Any

import openai
import pytest

import otel_tokens
from otel_tokens.demo.server import ModelServer
from otel_tokens.instrument import runtime

pytestmark = pytest.mark.priced
MESSAGES: Any = [{"role": "user", "content": "Count to three."}]


@pytest.fixture
def stream(meter: Any, model_server: ModelServer) -> Any:
    with openai.OpenAI(api_key="k", base_url=f"{model_server.url}/v1") as client:
        opened = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        next(opened)
        yield opened
        opened.close()


def test_an_open_stream_is_recorded_when_the_metering_ends(meter: Any, stream: Any) -> None:
    otel_tokens.uninstrument()
    record = meter.one()
    assert (record.outcome, record.usage.origin) == ("abandoned", "estimated")
    assert list(stream)  # the caller's stream goes on
    assert len(meter.records()) == 1


def test_a_forked_child_leaves_its_parents_stream_alone(meter: Any, stream: Any) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = runtime()
        if held is not None:
            held.engine.end_open()
        os.write(write, str(len(meter.seen)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"0"
    os.close(read)
    os.close(write)
    assert list(stream)
    assert meter.one().usage.origin == "provider"
