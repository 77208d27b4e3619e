"""How many tokens a request may be: bounds that hold for natural text, and what reports teach about the rest."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.usage.estimate import MARGIN, Estimator
from otel_tokens.usage.weight import BASE_TOKENS, BLOCK_TOKENS, FILE_TOKENS, MEDIA_TOKENS, Weight, text_bound, weigh

# Tokens of OpenAI's two current vocabularies (o200k_base, cl100k_base), the larger, as counted with them.
COUNTED = {
    "english": ("The quick brown fox jumps over the lazy dog. " * 20, 201),
    "chinese": ("我们今天去公园散步，天气非常好，阳光明媚。人工智能正在改变世界。" * 20, 760),
    "japanese": ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 50, 1950),
    "korean": ("안녕하세요 오늘 날씨가 참 좋네요. 인공지능은 세상을 바꾸고 있습니다." * 50, 1950),
    "russian": ("Сегодня хорошая погода, мы идём гулять в парк. Искусственный интеллект." * 50, 1950),
    "hindi": ("आज मौसम बहुत अच्छा है और हम पार्क में घूमने जा रहे हैं" * 50, 2750),
    "numbers": (" ".join(str(i % 10) for i in range(5000)), 9999),
    "digits": ("4071" * 1000, 1334),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_natural_text_stays_below_its_bound(kind: str) -> None:
    text, tokens = COUNTED[kind]
    assert tokens <= text_bound(text) <= 4 * tokens


@given(st.text(max_size=300))
def test_a_bound_is_never_more_than_a_token_for_a_byte(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    assert size / 2 <= text_bound(text) <= size


def test_frames_images_and_files_weigh() -> None:
    plain = weigh([[{"role": "user", "content": "abcd"}]])
    assert plain == Weight(BASE_TOKENS + BLOCK_TOKENS + 2)
    image: dict[str, Any] = {"type": "image", "source": {"type": "base64", "data": "A" * 100_000}}
    assert weigh([[image]]).tokens == BASE_TOKENS + 2 * BLOCK_TOKENS + MEDIA_TOKENS["image"]
    page = {"type": "input_file", "file_data": "A" * 100_000, "filename": ""}
    assert weigh([[page]]).tokens == BASE_TOKENS + BLOCK_TOKENS + FILE_TOKENS
    address = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert weigh([[address]]).tokens == BASE_TOKENS + BLOCK_TOKENS + MEDIA_TOKENS["image_url"]


def test_a_thousand_tiny_messages_are_more_than_their_text() -> None:
    messages = [{"role": "user", "content": "a"}] * 1000
    assert weigh([messages]).tokens >= 1000 * 5  # four tokens frame a message


def test_tools_and_schemas_weigh() -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"properties": {"q": {"type": "string"}}}}}
    assert weigh([[tool]]).tokens > BASE_TOKENS + 4 * BLOCK_TOKENS


@pytest.mark.parametrize(
    "odd", [None, 5, [], {}, [None], "", object(), {"type": 7}, [[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]]
)
def test_odd_requests_weigh_something(odd: Any) -> None:
    assert weigh([odd]).tokens >= BASE_TOKENS


def test_a_tokenizer_counts_in_place_of_the_bytes() -> None:
    assert weigh([["two words"]], lambda text: len(text.split())) == Weight(BASE_TOKENS + 2, counted=True)


# ---- what reports teach ----------------------------------------------------------------------------------------
def test_before_any_report_the_weight_is_the_bound() -> None:
    assert Estimator().upper("m", Weight(1000)) == 1000


def test_reports_lower_the_bound_to_the_worst_of_them_and_a_margin() -> None:
    estimator = Estimator()
    for tokens in (250, 400, 300):
        estimator.learn_upper("m", Weight(1000), tokens)
    assert estimator.upper("m", Weight(2000)) == pytest.approx(2000 * 0.4 * MARGIN, rel=0.02)
    assert estimator.upper("m", Weight(2000, counted=True)) == 2000
    assert estimator.upper("other", Weight(2000)) == 2000


def test_what_is_billed_beyond_the_request_is_reserved_from_then_on() -> None:
    estimator = Estimator()
    estimator.learn_upper("m", Weight(50), 1050)  # a stored conversation, say
    assert estimator.upper("m", Weight(50)) >= 1050
    assert estimator.upper("m", Weight(5000)) == pytest.approx(5000 + 1000 * MARGIN)


def test_a_worst_case_fades() -> None:
    estimator = Estimator()
    estimator.learn_upper("m", Weight(50), 10_050)
    for _ in range(1000):
        estimator.learn_upper("m", Weight(50), 50)
    assert estimator.upper("m", Weight(50)) < 60


def test_reports_of_nothing_teach_nothing() -> None:
    estimator = Estimator()
    estimator.learn_upper("m", Weight(50), 0)
    assert estimator.upper("m", Weight(50)) == 50


@given(st.lists(st.tuples(st.integers(16, 10**6), st.integers(1, 10**6)), min_size=1, max_size=30))
def test_the_last_report_would_have_fitted(reports: list[tuple[int, int]]) -> None:
    estimator = Estimator()
    for weight, tokens in reports:
        estimator.learn_upper("m", Weight(weight), tokens)
    weight, tokens = reports[-1]
    assert estimator.upper("m", Weight(weight)) >= tokens


def test_code_and_json_stay_below_their_bound() -> None:
    code = Path(json.__file__).read_text()
    # Code of this kind has a token in four bytes, JSON of short values one in two.
    assert text_bound(code) >= len(code) / 4
    dice = random.Random(1)
    rows = json.dumps([{"id": i, "name": f"user{i}", "v": dice.random()} for i in range(300)])
    assert text_bound(rows) >= len(rows) / 2
    assert text_bound("".join(dice.choice(string.punctuation) for _ in range(5000))) >= 3293
