"""The provider that bills at a base URL: a table of hosts, and the user's own rows, which win.

The provider of an unknown host is its server address. Its calls are counted under that name and are unpriced.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from otel_tokens.settings import HostRow

UNKNOWN = "unknown"
"""Provider where not even an address is known: an empty or unreadable base URL."""


@dataclass(frozen=True, slots=True)
class Host:
    """The provider at one base URL.

    `provider` is the conventions' name, else the vendor's own, else the server's address (`known` is False then).
    `address` and `port` are the server's (a Unix socket has no port). `local` hosts are on this machine or its
    network; they cost nothing only if the user states it (`free`). `include_usage` is whether
    `stream_options.include_usage` may be sent to get usage in chat streams. True: the host honours it. False: the host
    refuses it, or sends usage anyway. None: not known, try.
    """

    provider: str
    address: str | None = None
    port: int | None = None
    known: bool = False
    local: bool = False
    include_usage: bool | None = None
    free: bool = False


class Row(NamedTuple):
    """One row of the table. `host` may have `*`, `path` is a prefix in whole segments (`*` is any one segment)."""

    host: str
    provider: str
    include_usage: bool | None = None
    path: str = ""
    sdk: str = ""


ASK, NO, TRY = True, False, None

# The first row that fits wins, so narrower ones come first. Sources of `include_usage` are the vendors' API
# references. If a vendor was seen to refuse it, the row has a comment.
TABLE: tuple[Row, ...] = (
    # ---- the SDKs' own
    Row("api.openai.com", "openai", ASK),
    Row("*.api.openai.com", "openai", ASK),  # data residency: us, eu, ae, au, in, jp
    Row("api.anthropic.com", "anthropic"),
    Row("aws-external-anthropic.*.api.aws", "anthropic"),  # Claude platform on AWS: Anthropic serves and prices
    Row("claude.googleapis.com", "anthropic"),  # the same on Google Cloud
    # ---- clouds
    # Azure: api-versions before 2024-09-01-preview and "on your data" refuse stream_options.
    Row("*.openai.azure.com", "azure.ai.openai", TRY),
    Row("*.openai.azure.us", "azure.ai.openai", TRY),
    Row("*.openai.azure.cn", "azure.ai.openai", TRY),
    Row("*.services.ai.azure.com", "azure.ai.openai", TRY, path="/openai"),
    Row("*.services.ai.azure.com", "azure.ai.inference", TRY, path="/anthropic"),
    Row("*.services.ai.azure.com", "azure.ai.inference", TRY, path="/models"),
    Row("*.services.ai.azure.com", "azure.ai.inference", TRY, sdk="anthropic"),
    Row("*.services.ai.azure.com", "azure.ai.openai", TRY),
    Row("*.cognitiveservices.azure.com", "azure.ai.inference", TRY, path="/anthropic"),
    Row("*.cognitiveservices.azure.com", "azure.ai.openai", TRY),
    Row("*.api.cognitive.microsoft.com", "azure.ai.openai", TRY),
    Row("models.inference.ai.azure.com", "github", ASK),  # GitHub Models, former address
    Row("*.inference.ai.azure.com", "azure.ai.inference", TRY),
    Row("*.models.ai.azure.com", "azure.ai.inference", TRY),
    Row("*.azure-api.net", "azure.ai.openai", TRY, path="/openai"),  # API Management in front of Azure OpenAI
    # AWS partitions: commercial, China, European sovereign; dual-stack names end in api.aws.
    Row("bedrock-runtime*.*.amazonaws.com", "aws.bedrock", TRY),
    Row("bedrock-runtime*.*.amazonaws.com.cn", "aws.bedrock", TRY),
    Row("bedrock-runtime*.*.amazonaws.eu", "aws.bedrock", TRY),
    Row("bedrock-runtime*.*.api.aws", "aws.bedrock", TRY),
    Row("bedrock-mantle*.*.api.aws", "aws.bedrock", TRY),
    Row("bedrock-mantle*.*.amazonaws.com", "aws.bedrock", TRY),
    Row("*.bedrock-runtime.*.vpce.amazonaws.com", "aws.bedrock", TRY),
    Row("aiplatform.googleapis.com", "gcp.vertex_ai", TRY),
    Row("*-aiplatform.googleapis.com", "gcp.vertex_ai", TRY),
    Row("aiplatform.*.rep.googleapis.com", "gcp.vertex_ai", TRY),
    Row("generativelanguage.googleapis.com", "gcp.gemini", ASK),
    Row("*.ml.cloud.ibm.com", "ibm.watsonx.ai", TRY),
    Row("*.databricks.com", "databricks", TRY),  # refused for models it takes from Bedrock
    Row("*.azuredatabricks.net", "databricks", TRY),
    Row("*.snowflakecomputing.com", "snowflake", TRY),
    Row("inference.do-ai.run", "digitalocean", TRY),
    # ---- model makers
    Row("api.deepseek.com", "deepseek", ASK),
    Row("api.moonshot.ai", "moonshot_ai", ASK),
    Row("api.moonshot.cn", "moonshot_ai", ASK),
    Row("api.kimi.com", "moonshot_ai", ASK),
    Row("api.z.ai", "zai", TRY),
    Row("open.bigmodel.cn", "zhipuai", TRY),  # the same maker's Chinese platform: other prices, another bill
    Row("dashscope*.aliyuncs.com", "alibaba", ASK),
    Row("*.dashscope.aliyuncs.com", "alibaba", ASK),
    Row("*.maas.aliyuncs.com", "alibaba", ASK),
    Row("api.x.ai", "x_ai", ASK),
    Row("*.api.x.ai", "x_ai", ASK),
    Row("api.mistral.ai", "mistral_ai", NO),  # 422 "extra inputs are not permitted"; the last chunk has usage anyway
    Row("codestral.mistral.ai", "mistral_ai", NO),
    Row("api.perplexity.ai", "perplexity", NO),  # every chunk has usage
    Row("api.cohere.com", "cohere", ASK),
    Row("api.cohere.ai", "cohere", ASK),
    Row("api.minimax.io", "minimax", ASK),
    Row("api.minimax.chat", "minimax", ASK),
    Row("api.minimaxi.com", "minimax", ASK),
    Row("api.minimaxi.chat", "minimax", ASK),
    Row("api.ai21.com", "ai21", TRY),
    Row("api.stepfun.com", "stepfun", TRY),
    Row("api.stepfun.ai", "stepfun", TRY),
    Row("api.lingyiwanwu.com", "01_ai", TRY),
    Row("api.baichuan-ai.com", "baichuan", TRY),
    Row("api.hunyuan.cloud.tencent.com", "tencent", TRY),
    Row("qianfan.baidubce.com", "baidu", TRY),
    Row("spark-api-open.xf-yun.com", "iflytek", TRY),
    Row("api.xiaomimimo.com", "xiaomi", TRY),
    Row("api.longcat.chat", "longcat", TRY),
    Row("api.llama.com", "meta", TRY),
    Row("api.meta.ai", "meta", TRY),
    Row("api.reka.ai", "reka", TRY),
    Row("api.writer.com", "writer", TRY),
    Row("api.upstage.ai", "upstage", TRY),
    Row("api.arcee.ai", "arcee", TRY),
    Row("api.inceptionlabs.ai", "inception", TRY),
    Row("api.voyageai.com", "voyage"),
    Row("api.jina.ai", "jina", TRY),
    Row("api.sarvam.ai", "sarvam", TRY),
    Row("api.morphllm.com", "morph", TRY),
    Row("api.nova.amazon.com", "amazon_nova", TRY),  # Amazon's own API of Nova, not Bedrock
    Row("gigachat.devices.sberbank.ru", "gigachat", TRY),
    # ---- hosts of other makers' models
    Row("api.groq.com", "groq", ASK),
    Row("api.cerebras.ai", "cerebras", ASK),
    Row("api.together.xyz", "together", TRY),
    Row("api.together.ai", "together", TRY),
    Row("api.fireworks.ai", "fireworks", TRY),
    Row("api.siliconflow.cn", "siliconflow", TRY),
    Row("api.siliconflow.com", "siliconflow", TRY),
    Row("ark.*.volces.com", "volcengine", ASK),
    Row("ark.*.bytepluses.com", "volcengine", ASK),
    Row("integrate.api.nvidia.com", "nvidia", NO),  # was seen to hang, where a refusal could be repeated
    Row("ai.api.nvidia.com", "nvidia", NO),
    Row("router.huggingface.co", "huggingface", TRY),
    Row("api-inference.huggingface.co", "huggingface", TRY),
    Row("*.endpoints.huggingface.cloud", "huggingface", TRY),
    Row("api.sambanova.ai", "sambanova", ASK),
    Row("api.deepinfra.com", "deepinfra", ASK),
    Row("api.novita.ai", "novita", TRY),
    Row("api.hyperbolic.xyz", "hyperbolic", TRY),
    Row("inference.baseten.co", "baseten", TRY),
    Row("api.studio.nebius.com", "nebius", TRY),
    Row("api.studio.nebius.ai", "nebius", TRY),
    Row("api.tokenfactory.nebius.com", "nebius", TRY),
    Row("api.lambda.ai", "lambda", TRY),
    Row("api.lambdalabs.com", "lambda", TRY),
    Row("api.scaleway.ai", "scaleway", TRY),
    Row("*.endpoints.kepler.ai.cloud.ovh.net", "ovhcloud", TRY),
    Row("api.friendli.ai", "friendli", TRY),
    Row("api.featherless.ai", "featherless", TRY),
    Row("api.parasail.io", "parasail", TRY),
    Row("api.inference.net", "inference_net", TRY),
    Row("api.inference.wandb.ai", "wandb", TRY),
    Row("llm.chutes.ai", "chutes", TRY),
    Row("api.venice.ai", "venice", TRY),
    Row("api.avian.io", "avian", TRY),
    Row("api.doubleword.ai", "doubleword", TRY),
    Row("api-inference.modelscope.cn", "modelscope", TRY),
    Row("api.replicate.com", "replicate", TRY),
    Row("openai-proxy.replicate.com", "replicate", TRY),
    Row("api.cloudflare.com", "cloudflare", TRY),
    Row("inference.api.nscale.com", "nscale", TRY),
    Row("api.inference.crusoecloud.com", "crusoe", TRY),
    Row("api.gmi-serving.com", "gmi", TRY),
    Row("api.clarifai.com", "clarifai", TRY),
    Row("api.publicai.co", "publicai", TRY),
    Row("api.synthetic.new", "synthetic", TRY),
    Row("ollama.com", "ollama_cloud", ASK),
    # ---- routers: they bill for other providers
    Row("openrouter.ai", "openrouter", NO),  # its last event has usage unasked; the option has no effect
    Row("*.openrouter.ai", "openrouter", NO),
    Row("ai-gateway.vercel.sh", "vercel", TRY),
    Row("models.github.ai", "github", ASK),
    Row("api.githubcopilot.com", "github_copilot", TRY),
    Row("*.githubcopilot.com", "github_copilot", TRY),
    Row("api.poe.com", "poe", TRY),
    Row("api.aimlapi.com", "aimlapi", TRY),
    Row("api.requesty.ai", "requesty", TRY),
    Row("router.requesty.ai", "requesty", TRY),
    Row("opencode.ai", "opencode", TRY, path="/zen"),
    Row("nano-gpt.com", "nano_gpt", TRY),
    Row("aihubmix.com", "aihubmix", TRY),
    # ---- gateways: the path or the name shows the provider
    Row("gateway.ai.cloudflare.com", "openai", ASK, path="/v1/*/*/openai"),
    Row("gateway.ai.cloudflare.com", "anthropic", path="/v1/*/*/anthropic"),
    Row("gateway.ai.cloudflare.com", "azure.ai.openai", TRY, path="/v1/*/*/azure-openai"),
    Row("gateway.ai.cloudflare.com", "aws.bedrock", TRY, path="/v1/*/*/aws-bedrock"),
    Row("gateway.ai.cloudflare.com", "gcp.gemini", ASK, path="/v1/*/*/google-ai-studio"),
    Row("gateway.ai.cloudflare.com", "gcp.vertex_ai", TRY, path="/v1/*/*/google-vertex-ai"),
    Row("gateway.ai.cloudflare.com", "mistral_ai", NO, path="/v1/*/*/mistral"),
    Row("gateway.ai.cloudflare.com", "groq", ASK, path="/v1/*/*/groq"),
    Row("gateway.ai.cloudflare.com", "x_ai", ASK, path="/v1/*/*/grok"),
    Row("gateway.ai.cloudflare.com", "cohere", ASK, path="/v1/*/*/cohere"),
    Row("gateway.ai.cloudflare.com", "deepseek", ASK, path="/v1/*/*/deepseek"),
    Row("gateway.ai.cloudflare.com", "perplexity", NO, path="/v1/*/*/perplexity-ai"),
    Row("gateway.ai.cloudflare.com", "cerebras", ASK, path="/v1/*/*/cerebras"),
    Row("gateway.ai.cloudflare.com", "openrouter", NO, path="/v1/*/*/openrouter"),
    Row("gateway.ai.cloudflare.com", "huggingface", TRY, path="/v1/*/*/huggingface"),
    Row("gateway.ai.cloudflare.com", "replicate", TRY, path="/v1/*/*/replicate"),
    Row("gateway.ai.cloudflare.com", "cloudflare", TRY),  # workers-ai, and compat, where the model names the vendor
    Row("oai.helicone.ai", "openai", ASK),
    Row("oai.hconeai.com", "openai", ASK),
    Row("anthropic.helicone.ai", "anthropic"),
    Row("ai-gateway.helicone.ai", "helicone", TRY),
    Row("api.portkey.ai", "portkey", TRY),  # headers name the provider
)

# A local server is known by its default port alone.
LOCAL_PORTS: dict[int, str] = {11434: "ollama", 1234: "lm_studio", 8000: "vllm", 8080: "llama_cpp"}

_LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.internal", "*.lan", "*.home.arpa", "*.svc", "*.cluster.local")
_DEFAULT_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}
_MAX_ADDRESS = 255
_MAX_CACHED = 1024

_cache: dict[tuple[Any, ...], tuple[Host, object]] = {}


def resolve(base_url: object, *, sdk: str, user_hosts: Sequence[HostRow] = ()) -> Host:
    """The provider that bills at `base_url` (a str, or what `str()` makes a URL of) called through `sdk` ("openai" …).

    The first fitting row of `user_hosts`, then of the table, wins. Never raises. Results are cached for this
    `user_hosts` object, which must not change.
    """
    if base_url.__class__ is not str:
        base_url = _as_text(base_url)
    key = (base_url, sdk, id(user_hosts)) if user_hosts else (base_url, sdk)
    cached = _cache.get(key)
    if cached is not None:
        return cached[0]
    host = _resolve(_Url.parse(str(base_url)), sdk, user_hosts)
    if len(_cache) >= _MAX_CACHED:
        _cache.clear()
    _cache[key] = (host, user_hosts)  # kept alive with the entry, so that no other object can get its id
    return host


def _as_text(value: object) -> str:
    try:
        return "" if value is None else str(value)
    except Exception:  # an object of the user's may raise anything; an empty URL is unknown
        return ""


class _Url(NamedTuple):
    """The parts of a URL that matter here: no user, no password, no query."""

    address: str | None = None
    port: int | None = None
    path: str = ""
    explicit_port: bool = False
    socket: bool = False

    @classmethod
    def parse(cls, text: str) -> _Url:
        """The parts of `text`; all empty if it is no URL."""
        text = text.strip()
        try:
            parts = urlsplit(text if "://" in text or text.startswith("//") else f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            return cls()
        scheme = parts.scheme.lower()
        if "unix" in scheme.split("+"):  # http+unix://%2Frun%2Fllm.sock/v1, unix:///run/llm.sock
            return cls(unquote(host or parts.path)[:_MAX_ADDRESS] or None, path=parts.path, socket=True)
        if not host:
            return cls()
        host = host.lower().rstrip(".")[:_MAX_ADDRESS]
        default = _DEFAULT_PORTS.get(scheme or "https")
        return cls(host or None, port or default, parts.path, explicit_port=bool(port))


def _resolve(url: _Url, sdk: str, user_hosts: Sequence[HostRow]) -> Host:
    host = _from_table(url, sdk)
    for row in user_hosts:
        if _user_row_fits(row, url):
            provider = row.provider or host.provider
            known = host.known or row.provider is not None
            asked = host.include_usage if row.include_usage is None else row.include_usage
            return replace(host, provider=provider, known=known, include_usage=asked, free=row.free)
    return host


def _from_table(url: _Url, sdk: str) -> Host:
    address = url.address
    if address is None:
        return Host(UNKNOWN)
    if url.socket:
        return Host(address, address, None, local=True)
    if _is_local(address):
        name = LOCAL_PORTS.get(url.port or 0) if url.explicit_port else None
        usage = True if name else None  # all four answer it in their OpenAI-compatible servers
        return Host(name or address, address, url.port, known=name is not None, local=True, include_usage=usage)
    for row in TABLE:
        if row.sdk in ("", sdk) and fnmatchcase(address, row.host) and _below(url.path, row.path):
            return Host(row.provider, address, url.port, known=True, include_usage=row.include_usage)
    return Host(address, address, url.port)


def _is_local(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "." not in address or any(fnmatchcase(address, name) for name in _LOCAL_NAMES)
    return ip.is_loopback or ip.is_private or ip.is_link_local or ip.is_unspecified


def _user_row_fits(row: HostRow, url: _Url) -> bool:
    match, port = row.match, None
    if match.count(":") == 1 or "]:" in match:
        match, _, text = match.rpartition(":")
        port = int(text) if text.isdecimal() else -1
    match = match.strip("[]")
    if url.address is None or (port is not None and port != url.port):
        return False
    fits = url.address.endswith(match[1:]) if match.startswith("*.") else url.address == match
    return fits and _below(url.path, row.path)


def _below(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or below it, in whole segments; `*` stands for any one segment."""
    wanted = prefix.strip("/").split("/") if prefix.strip("/") else []
    given = path.strip("/").split("/")
    return len(given) >= len(wanted) and all(want in ("*", part) for want, part in zip(wanted, given, strict=False))
