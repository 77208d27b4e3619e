"""Makes a `Call` of the arguments of an SDK's request function."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

from otel_tokens.providers.hosts import Host
from otel_tokens.providers.registry import route
from otel_tokens.providers.spec import Endpoint, Provider
from otel_tokens.shapes import is_list, is_mapping
from otel_tokens.usage.read import dig, first, get
from otel_tokens.values import Call, make

_TERMS = (("service_tier", "service_tier"), ("speed", "speed"), ("geo", "inference_geo"))
"""What of a request changes its price: (field of `Call`, key of the body)."""


class Options(Protocol):
    """The request options that the Stainless SDKs build for every call."""

    method: str
    url: str
    headers: Any
    json_data: Any
    extra_json: Any
    timeout: Any


class Requests:
    """Builds calls. Knows the settings that concern requests; the host of each client is resolved once."""

    def __init__(
        self,
        resolve: Callable[[str, str], Host],
        tags: Callable[[], Mapping[str, str]],
        include_usage: bool = True,
    ) -> None:
        self._resolve = resolve
        self._tags = tags
        self.include_usage = include_usage
        self._hosts: WeakKeyDictionary[Any, tuple[Any, Host]] = WeakKeyDictionary()

    def endpoint(self, provider: Provider, options: Options) -> Endpoint | None:
        """The billed endpoint this request reaches, or None: a GET repeats what was billed before."""
        if options.method not in ("post", "POST"):
            return None
        return route(provider.sdk, options.url)

    def host(self, provider: Provider, client: Any, url: str) -> Host:
        """The provider of this client's calls, known by its host; for an unknown host, by the client's class."""
        if "://" in url:
            return self._resolve(url, provider.sdk)
        base = getattr(client, "_base_url", None)
        held = self._hosts.get(client)
        # A client's base_url can be set later: it is then another object.
        if held is None or held[0] is not base:
            host = self._resolve(str(getattr(client, "base_url", base)), provider.sdk)
            if not host.known:
                # openai.OpenAI(provider=…) keeps the cloud's name there; other clouds have client classes.
                cloud = str(getattr(getattr(client, "_provider_runtime", None), "name", ""))
                names = (cloud, *(kind.__name__ for kind in type(client).__mro__))
                biller = next((provider.clients[name] for name in names if name in provider.clients), None)
                host = host if biller is None else replace(host, provider=biller)
            held = (base, host)
            self._hosts[client] = held
        return held[1]

    def call(
        self, provider: Provider, endpoint: Endpoint, client: Any, options: Options
    ) -> tuple[Call, dict[str, Any]]:
        """The call, and its body as it will be sent (a shallow merge; nothing is copied or kept)."""
        body = body_of(options)
        host = self.host(provider, client, options.url)
        model = body.get("model")
        values: dict[str, Any] = {
            "id": new_id(),
            "provider": host.provider,
            "endpoint": endpoint.name,
            "operation": endpoint.operation,
            "model": model if isinstance(model, str) else "",
            "started": time.time(),
            "sdk": provider.sdk,
            "stream": bool(body.get("stream")),
            "server_address": host.address,
            "server_port": host.port,
            "max_output": _bound(first(body, endpoint.max_output)),
            "choices": _answers(endpoint, body),
            "attributes": _attributes(endpoint, body),
            "tags": self._tags(),
        }
        if host.free:
            values["free"] = True
        for name, key in _TERMS:
            term = body.get(key)
            if isinstance(term, str):
                values[name] = term
        call = make(Call, values)
        return call, body


def _answers(endpoint: Endpoint, body: dict[str, Any]) -> int:
    """How many answers are asked for: so many for each of the prompts."""
    choices = first(body, endpoint.choices) if endpoint.choices else 1
    answers = choices if isinstance(choices, int) and choices > 0 else 1
    prompts = body.get(endpoint.batch) if endpoint.batch else None
    if is_list(prompts) and prompts and not isinstance(prompts[0], int):  # a list of numbers is one prompt: token ids
        answers *= len(prompts)
    return answers


class _LeftOut(dict[type[Any], bool]):
    """Whether a value of this type stands for an argument that was not given: the SDK drops it before it sends."""

    def __missing__(self, kind: type[Any]) -> bool:
        self[kind] = answer = kind.__name__ in ("NotGiven", "Omit")
        return answer


_left_out = _LeftOut()


def body_of(options: Options) -> dict[str, Any]:
    """The JSON body as it will be sent: `extra_body` wins over the call's own arguments."""
    data: Mapping[str, Any] = options.json_data if is_mapping(options.json_data) else {}
    body = {key: value for key, value in data.items() if not _left_out[type(value)]}
    return {**body, **options.extra_json} if options.extra_json else body


class UsageOption(dict[str, Any]):
    """`stream_options` as we wrote them, known by their class also when a client's hook has copied them."""

    instead_of: Any = None


def usage_option(body: Mapping[str, Any]) -> UsageOption | None:
    """The option that asks for usage in a chat stream. None if the caller has set it, or if it is no stream."""
    given = body.get("stream_options")
    if not body.get("stream") or not (given is None or is_mapping(given)):
        return None
    if given and given.get("include_usage") is not None:
        return None
    wanted = UsageOption(given or {}, include_usage=True)
    wanted.instead_of = given
    return wanted


def ask_for_usage(options: Options, wanted: UsageOption) -> None:
    """Put the option into a copy of the request's dict: the caller's own is not touched."""
    # extra_body is merged over json_data when the request is built, so it is the place that wins.
    place = "extra_json" if options.extra_json and "stream_options" in options.extra_json else "json_data"
    setattr(options, place, {**getattr(options, place), "stream_options": wanted})


def with_ours(options: Options) -> bool:
    """Whether a request has the option that we wrote, and not one that was written after it."""
    return any(isinstance(get(held, "stream_options"), UsageOption) for held in (options.json_data, options.extra_json))


def unask(options: Options) -> None:
    """Take the option out again, and leave all else as it is."""
    for place in ("json_data", "extra_json"):
        held = getattr(options, place)
        ours = get(held, "stream_options")
        if isinstance(ours, UsageOption):
            rest = {key: value for key, value in held.items() if key != "stream_options"}
            setattr(options, place, rest if ours.instead_of is None else {**rest, "stream_options": ours.instead_of})


Refusal = Literal["named", "perhaps"]


def refusal_of_option(error: Exception) -> Refusal | None:
    """Whether a host refused a request for the option that we added.

    "named": the answer names the option. "perhaps": the request is wrong, for a reason that the answer does not name.
    """
    status = getattr(error, "status_code", None)
    if status not in _REFUSALS:
        return None
    said = f"{error} {getattr(error, 'body', '')}"
    if "stream_options" in said or "include_usage" in said:
        return "named"
    return None if status == 404 or getattr(error, "param", None) else "perhaps"


_REFUSALS = (400, 404, 422, 501)


def _bound(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@lru_cache(maxsize=256)
def _by_key(endpoint: Endpoint) -> dict[str, tuple[tuple[str, str], ...]]:
    """The endpoint's attributes by the first key of their path: a body has fewer keys than there are attributes."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for path, name in endpoint.attributes.items():
        key = path.partition(".")[0]
        found[key] = (*found.get(key, ()), (path, name))
    return found


def _attributes(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request attributes that the conventions name. Values are numbers, short words and lists of words."""
    found: dict[str, Any] = {}
    by_key = _by_key(endpoint)
    for key in body:
        for path, name in by_key.get(key, ()):
            value = body[key] if path == key else dig(body, path)
            if isinstance(value, (int, float, str)):
                found[name] = value
            elif is_list(value) and all(isinstance(item, str) for item in value):
                found[name] = tuple(value)
    return found


_prefix = ""
_numbers = itertools.count(1)


def _new_prefix() -> None:
    global _prefix
    _prefix = os.urandom(10).hex()


_new_prefix()
os.register_at_fork(after_in_child=_new_prefix)  # or parent and child would number alike


def new_id() -> str:
    """A unique call id: 80 random bits of this process and a number, a quarter of a uuid4's price."""
    return f"{_prefix}-{next(_numbers):x}"
