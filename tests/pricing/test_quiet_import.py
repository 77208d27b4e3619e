"""Loading prices brings no HTTP client into the process, and takes nothing from those who use genai-prices."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_http_client_is_imported() -> None:
    out = run(
        "import sys, otel_tokens\n"
        "otel_tokens.instrument(config=False)\n"
        "cost = otel_tokens.price('gpt-4o', otel_tokens.Usage(input=1000))\n"
        "print(cost.status, 'httpx2' in sys.modules, 'asyncio' in sys.modules)"
    )
    assert out == "priced False False"


def test_the_updater_is_there_for_those_who_want_it() -> None:
    out = run(
        "import otel_tokens\n"
        "otel_tokens.price('gpt-4o', otel_tokens.Usage(input=1000))\n"
        "from genai_prices import UpdatePrices, calc_price, Usage\n"
        "import genai_prices, genai_prices.update_prices as real\n"
        "assert genai_prices.UpdatePrices is UpdatePrices is real.UpdatePrices\n"
        "print(calc_price(Usage(input_tokens=1000), 'gpt-4o', provider_id='openai').total_price)"
    )
    assert out.startswith("0.0025")


def test_a_client_that_is_there_already_changes_nothing() -> None:
    out = run(
        "import httpx2, otel_tokens, sys\n"
        "otel_tokens.price('gpt-4o', otel_tokens.Usage(input=1000))\n"
        "import genai_prices\n"
        "print('genai_prices.update_prices' in sys.modules)"
    )
    assert out == "True"
