"""Who bills at a base URL: the table, the user's rows, odd URLs, and the cache."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tokens.providers import hosts
from otel_tokens.providers.hosts import TABLE, UNKNOWN, Host, resolve
from otel_tokens.settings import HostRow

BILLERS = {
    "https://api.openai.com/v1/": "openai",
    "https://eu.api.openai.com/v1": "openai",
    "https://us.api.openai.com/v1": "openai",
    "https://res.openai.azure.com/openai/": "azure.ai.openai",
    "https://res.openai.azure.com/openai/v1": "azure.ai.openai",
    "https://res.cognitiveservices.azure.com/openai/deployments/x": "azure.ai.openai",
    "https://res.cognitiveservices.azure.com/anthropic": "azure.ai.inference",
    "https://res.services.ai.azure.com/openai/v1/": "azure.ai.openai",
    "https://res.services.ai.azure.com/anthropic/": "azure.ai.inference",
    "https://res.services.ai.azure.com/models": "azure.ai.inference",
    "https://m.eastus2.models.ai.azure.com/v1": "azure.ai.inference",
    "https://apim.azure-api.net/openai/": "azure.ai.openai",
    "https://bedrock-runtime.us-east-1.amazonaws.com": "aws.bedrock",
    "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1": "aws.bedrock",
    "https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com": "aws.bedrock",
    "https://bedrock-runtime.cn-north-1.amazonaws.com.cn": "aws.bedrock",
    "https://bedrock-mantle.us-east-1.api.aws/anthropic": "aws.bedrock",
    "https://vpce-1-2.bedrock-runtime.us-east-1.vpce.amazonaws.com": "aws.bedrock",
    "https://us-east5-aiplatform.googleapis.com/v1": "gcp.vertex_ai",
    "https://aiplatform.googleapis.com/v1/": "gcp.vertex_ai",
    "https://aiplatform.eu.rep.googleapis.com/v1/": "gcp.vertex_ai",
    "https://generativelanguage.googleapis.com/v1beta/openai/": "gcp.gemini",
    "https://claude.googleapis.com/v1/projects/p/locations/global": "anthropic",
    "https://aws-external-anthropic.us-west-2.api.aws": "anthropic",
    "https://api.anthropic.com": "anthropic",
    "https://api.moonshot.ai/v1": "moonshot_ai",
    "https://api.moonshot.cn/anthropic": "moonshot_ai",
    "https://api.kimi.com/coding/": "moonshot_ai",
    "https://open.bigmodel.cn/api/paas/v4/": "zhipuai",
    "https://open.bigmodel.cn/api/anthropic": "zhipuai",
    "https://api.z.ai/api/paas/v4": "zai",
    "https://api.z.ai/api/anthropic": "zai",
    "https://api.deepseek.com": "deepseek",
    "https://api.deepseek.com/anthropic": "deepseek",
    "https://dashscope.aliyuncs.com/compatible-mode/v1": "alibaba",
    "https://dashscope-intl.aliyuncs.com/apps/anthropic": "alibaba",
    "https://openrouter.ai/api/v1": "openrouter",
    "https://openrouter.ai/api": "openrouter",
    "https://api.x.ai/v1": "x_ai",
    "https://us-east-1.api.x.ai/v1": "x_ai",
    "https://api.groq.com/openai/v1": "groq",
    "https://api.together.xyz/v1": "together",
    "https://api.together.ai/v1": "together",
    "https://api.fireworks.ai/inference/v1": "fireworks",
    "https://api.mistral.ai/v1": "mistral_ai",
    "https://api.perplexity.ai": "perplexity",
    "https://api.cerebras.ai/v1": "cerebras",
    "https://api.minimax.chat/v1": "minimax",
    "https://api.minimax.io/anthropic": "minimax",
    "https://api.minimaxi.com/v1": "minimax",
    "https://api.siliconflow.cn/v1": "siliconflow",
    "https://api.siliconflow.com/v1": "siliconflow",
    "https://ark.cn-beijing.volces.com/api/v3": "volcengine",
    "https://integrate.api.nvidia.com/v1": "nvidia",
    "https://router.huggingface.co/v1": "huggingface",
    "https://api-inference.huggingface.co/models/x/v1": "huggingface",
    "https://api.cohere.com/compatibility/v1": "cohere",
    "https://api.sambanova.ai/v1": "sambanova",
    "https://api.deepinfra.com/v1/openai": "deepinfra",
    "https://api.novita.ai/v3/openai": "novita",
    "https://api.hyperbolic.xyz/v1": "hyperbolic",
    "https://inference.baseten.co/v1": "baseten",
    "https://models.github.ai/inference": "github",
    "https://models.inference.ai.azure.com": "github",
    "https://ai-gateway.vercel.sh/v1": "vercel",
    "https://gateway.ai.cloudflare.com/v1/acc/gw/openai": "openai",
    "https://gateway.ai.cloudflare.com/v1/acc/gw/anthropic": "anthropic",
    "https://gateway.ai.cloudflare.com/v1/acc/gw/google-ai-studio/v1": "gcp.gemini",
    "https://gateway.ai.cloudflare.com/v1/acc/gw/compat": "cloudflare",
    "https://gateway.ai.cloudflare.com/v1/openai/gw/workers-ai/v1": "cloudflare",
    "https://oai.helicone.ai/v1": "openai",
    "https://api.portkey.ai/v1": "portkey",
    "https://adb-1.2.azuredatabricks.net/serving-endpoints": "databricks",
    "https://dbc-1.cloud.databricks.com/serving-endpoints": "databricks",
    "https://api.lambda.ai/v1": "lambda",
    "https://api.ai21.com/studio/v1": "ai21",
    "https://us-south.ml.cloud.ibm.com/ml/v1": "ibm.watsonx.ai",
}


@pytest.mark.parametrize(("url", "provider"), BILLERS.items())
def test_the_biller_is_known_by_the_host(url: str, provider: str):
    for sdk in ("openai", "anthropic"):
        found = resolve(url, sdk=sdk)
        assert (found.provider, found.known, found.local, found.free) == (provider, True, False, False)
        assert found.port == 443
        assert found.address == url.split("/")[2]


def test_the_sdk_decides_where_the_path_does_not():
    assert resolve("https://r.services.ai.azure.com", sdk="anthropic").provider == "azure.ai.inference"
    assert resolve("https://r.services.ai.azure.com", sdk="openai").provider == "azure.ai.openai"


@pytest.mark.parametrize(
    "url",
    [
        "https://llm.corp.example/v1",
        "https://api.openai.com.evil.example/v1",
        "https://notapi.openai.com.example",
        "https://xapi.openai.co",
        "https://bedrock-runtime.example.com",
        "https://my-app--vllm.modal.run/v1",
        "https://deepseek.com.example/v1",
        "https://openai.azure.com.example",
        "https://x.azure-api.net/other",
        "https://llm.corp.example:11434/v1",
    ],
)
def test_an_unknown_host_is_counted_under_its_own_address(url: str):
    found = resolve(url, sdk="openai")
    address = url.split("/")[2].partition(":")[0]
    assert found == Host(address, address, found.port, known=False)
    assert found.port == (11434 if ":11434" in url else 443)


@pytest.mark.parametrize(
    ("url", "provider", "address", "port"),
    [
        ("http://localhost:11434/v1", "ollama", "localhost", 11434),
        ("http://127.0.0.1:1234/v1", "lm_studio", "127.0.0.1", 1234),
        ("http://10.0.0.7:8000/v1", "vllm", "10.0.0.7", 8000),
        ("http://[::1]:8080/v1", "llama_cpp", "::1", 8080),
        ("http://ollama:11434", "ollama", "ollama", 11434),
        ("http://host.docker.internal:11434/v1", "ollama", "host.docker.internal", 11434),
        ("http://0.0.0.0:8000", "vllm", "0.0.0.0", 8000),
    ],
)
def test_a_local_server_is_named_by_its_default_port(url: str, provider: str, address: str, port: int):
    found = resolve(url, sdk="openai")
    assert found == Host(provider, address, port, known=True, local=True, include_usage=True, free=False)


@pytest.mark.parametrize(
    "url", ["http://localhost:4000/v1", "http://localhost/v1", "http://192.168.1.9:9999", "http://gpu1/v1"]
)
def test_any_other_local_server_is_unknown(url: str):
    found = resolve(url, sdk="openai")
    assert (found.known, found.local, found.provider) == (False, True, found.address)


def test_hosts_that_refuse_stream_options_are_not_asked():
    assert resolve("https://api.mistral.ai/v1", sdk="openai").include_usage is False
    assert resolve("https://api.openai.com/v1", sdk="openai").include_usage is True
    assert resolve("https://res.openai.azure.com", sdk="openai").include_usage is None
    assert resolve("https://llm.corp.example/v1", sdk="openai").include_usage is None


# ---- the user's rows

USER = (
    HostRow("llm.corp.example", "openai", path="/eu", free=True),
    HostRow("llm.corp.example", "vllm"),
    HostRow("*.gpu.example", "vllm", free=True, include_usage=False),
    HostRow("localhost:8000", "sglang"),
    HostRow("localhost:9000", free=True),
    HostRow("localhost:11434", free=True),
    HostRow("api.openai.com", "corp_proxy"),
    HostRow("[::1]:7000", "own"),
    HostRow("api.groq.com:443", "groq_eu"),
)


@pytest.mark.parametrize(
    ("url", "provider", "known", "free"),
    [
        ("https://llm.corp.example/eu/v1", "openai", True, True),
        ("https://LLM.Corp.Example./eu", "openai", True, True),
        ("https://llm.corp.example/europe", "vllm", True, False),
        ("https://a.b.gpu.example", "vllm", True, True),
        ("https://gpu.example", "gpu.example", False, False),
        ("http://localhost:8000/v1", "sglang", True, False),
        ("http://localhost:9000", "localhost", False, True),
        ("http://localhost:11434", "ollama", True, True),
        ("http://localhost:11435", "localhost", False, False),
        ("https://api.openai.com/v1", "corp_proxy", True, False),
        ("http://[::1]:7000", "own", True, False),
        ("https://api.groq.com/openai/v1", "groq_eu", True, False),
        ("https://api.deepseek.com", "deepseek", True, False),
    ],
)
def test_rows_of_the_user_win(url: str, provider: str, known: bool, free: bool):
    found = resolve(url, sdk="openai", user_hosts=USER)
    assert (found.provider, found.known, found.free) == (provider, known, free)


def test_a_row_of_the_user_can_say_whether_usage_may_be_asked_for():
    assert resolve("https://a.gpu.example", sdk="openai", user_hosts=USER).include_usage is False
    assert resolve("http://localhost:11434", sdk="openai", user_hosts=USER).include_usage is True


def test_answers_for_different_rows_do_not_mix():
    url = "https://mixed.example/v1"
    rows = [(HostRow("mixed.example", f"p{number}"),) for number in range(50)]
    for number, row in enumerate(rows):
        assert resolve(url, sdk="openai", user_hosts=row).provider == f"p{number}"
    for number in range(200):  # short-lived rows must not answer for each other through a reused id
        assert resolve(url, sdk="openai", user_hosts=[HostRow("mixed.example", f"q{number}")]).provider == f"q{number}"
    assert resolve(url, sdk="openai").provider == "mixed.example"


# ---- odd input


@pytest.mark.parametrize(
    "odd", ["", None, "   ", "http://", "http://[::1", "https://a:port/", "https://a:99999", "://", "/v1"]
)
def test_what_is_no_url_is_unknown(odd: object):
    assert resolve(odd, sdk="openai") == Host(UNKNOWN)


def test_other_objects_are_read_as_text():
    class Url:
        def __str__(self) -> str:
            return "https://api.openai.com/v1/"

    class Text(str):
        __slots__ = ()

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    assert resolve(Url(), sdk="openai").provider == "openai"
    assert resolve(Text("https://api.openai.com/v1/"), sdk="openai").provider == "openai"
    assert resolve(Bad(), sdk="openai") == Host(UNKNOWN)


def test_a_unix_socket_is_its_own_address():
    expected = Host("/run/llm.sock", "/run/llm.sock", None, local=True)
    assert resolve("http+unix://%2Frun%2Fllm.sock/v1", sdk="openai") == expected
    assert resolve("unix:///run/llm.sock", sdk="openai") == expected


def test_forms_of_the_same_host():
    for url in ("API.OpenAI.com", "https://api.openai.com.", "//api.openai.com/v1", "api.openai.com:443/v1"):
        found = resolve(url, sdk="openai")
        assert (found.provider, found.address, found.port) == ("openai", "api.openai.com", 443)
    assert resolve("http://api.openai.com", sdk="openai").port == 80
    assert resolve("https://api.openai.com:8443", sdk="openai").port == 8443


def test_credentials_never_become_an_address():
    found = resolve("https://user:s3cret@llm.corp.example/v1?key=s3cret", sdk="openai")
    assert found.provider == "llm.corp.example"
    assert "s3cret" not in repr(found)


HOSTS = st.text(max_size=300)
URLS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="htps:/[]@.%:0123456789abc-_~?#&*\\ \n", max_size=60),
    st.builds("{}://{}/{}".format, st.sampled_from(["http", "https", "unix", "x"]), HOSTS, st.text(max_size=9)),
)


@given(URLS, st.sampled_from(["openai", "anthropic", ""]))
def test_no_url_raises(url: str, sdk: str):
    for rows in ((), USER):
        found = resolve(url, sdk=sdk, user_hosts=rows)
        assert found.provider
        assert found.address is None or 0 < len(found.address) <= 255
        assert found.port is None or 0 < found.port < 65536
        assert found == resolve(url, sdk=sdk, user_hosts=rows)


@given(st.text(max_size=20), st.sampled_from(["", ":", ":x", ":80"]), st.text(max_size=9))
def test_no_row_of_the_user_raises(match: str, port: str, path: str):
    resolve("https://llm.corp.example/v1", sdk="openai", user_hosts=(HostRow(match + port, "x", path),))


# ---- the table and the cache


def test_each_row_can_be_reached():
    for number, row in enumerate(TABLE):
        path = row.path.replace("*", "x") or "/"
        url = f"https://{row.host.replace('*', 'x')}{path}"
        found = resolve(url, sdk=row.sdk or "openai")
        assert found.provider == row.provider, (number, row)
        assert found.include_usage == row.include_usage, (number, row)


def test_the_cache_is_bounded_and_hosts_are_frozen():
    for number in range(3000):
        resolve(f"https://h{number}.example", sdk="openai")
    assert len(hosts._cache) <= hosts._MAX_CACHED
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("https://api.openai.com", sdk="openai").free = True  # type: ignore[misc]


def test_a_repeated_look_up_is_answered_from_the_cache():
    first = resolve("https://again.example/v1", sdk="openai")
    assert resolve("https://again.example/v1", sdk="openai") is first
    assert resolve("https://a.gpu.example", sdk="openai", user_hosts=USER) is resolve(
        "https://a.gpu.example", sdk="openai", user_hosts=USER
    )
