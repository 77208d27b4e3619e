"""The names under which a model's price may be listed, from the exact name to its family.

A name is only shortened by parts that do not change the price (an address, a date, `-latest`), so that a model
never gets the price of a sibling: `gpt-4o-mini` is not a `gpt-4o`.
"""

from __future__ import annotations

import re

from otel_tokens.pricing.shipped import VENDOR_PREFIXES

_DATE = r"20\d{2}-?(?:0[1-9]|1[0-2])-?(?:[0-2]\d|3[01])"
# A version behind a date belongs to the snapshot. Alone, only v0 is harmless (nova-pro-v2 is another model).
_HARMLESS = re.compile(rf"(?<!\d){_DATE}(?:-v\d)?(?!\d)|(?<=-)v0\.\d(?=$|[-:@])")
_COMPACT_DATE = re.compile(r"(?<=-)(20\d{2})(0[1-9]|1[0-2])([0-2]\d|3[01])(?=[-:@]|$)")
_SUFFIX = re.compile(rf"[-@](?:{_DATE}|latest|default)$")
_GEMINI_STABLE = re.compile(r"(?<=^gemini-)(.*)-00\d$")
_SEPARATORS = "-@:/._"

# What may stand after a name that the catalogue knows without changing what it costs.
_WORDS = frozenset({"latest", "preview", "exp", "experimental", "beta", "default", "customtools", "instruct", "it"})
_NUMBER = re.compile(r"\d{3,4}|\d{6}|\d{8}|v[01]")
_REGION = re.compile(r"(?:us|eu|ap|apac|jp|au|in|ca|sa|me|af|il|mx|us-gov)\.(?=[a-z0-9]+\.)")
# In an ARN, or as a segment of its own, as LiteLLM writes it: bedrock/eu-west-2/…, azure/eu/…
_IN_ADDRESS = re.compile(r"arn:[^:]*:bedrock:([a-z0-9-]+):|(?:.*/)?([a-z]{2,3}(?:-gov)?-[a-z]+-\d)/")
# LiteLLM's names of Azure's places: azure/eu/…, azure/swedencentral/…; the price of "global" is the listed one.
_AZURE_PLACE = re.compile(r"(?:azure(?:_ai)?/(?=[a-z0-9-]+/)|(?=(?:us|eu|global)/))([a-z0-9-]+)/")
_AZURE_EVERYWHERE = frozenset({"global", "global-standard", "openai", "anthropic"})
_OPENAI_REGION = re.compile(r"[a-z]{2}\.api\.openai\.com")
_VERTEX_REGION = re.compile(r"[a-z0-9-]+-aiplatform\.googleapis\.com|aiplatform\.[a-z]+\.rep\.googleapis\.com")

# Bedrock: capacity by the hour or a model of the customer's own; the base model's token price does not apply.
_NOT_BY_TOKEN = re.compile(
    r"arn:aws[a-z-]*:bedrock:[^/]*:(?:provisioned-model|imported-model|custom-model[a-z-]*)/"
    r"|(?:.*/)?\d-months?-commitment/"
)


def by_the_hour(model: str) -> bool:
    """Whether `model` is an address whose calls are not billed by the token at the public price."""
    return _NOT_BY_TOKEN.match(model.strip().lower()) is not None


def spellings(model: str, provider: str) -> tuple[str, ...]:
    """The names of exactly this model, lower case, best first: as given, then without address and vendor."""
    name = model.strip().lower().removesuffix("[1m]")  # how Claude Code writes "with a long context"
    found = [name]
    if name.startswith("ft:"):
        # ft:<base>:<organisation>:<suffix>:<id>: the base alone decides the price
        return (":".join(name.split(":", 2)[:2]),)
    if name.startswith(("arn:", "models/")) or "/models/" in name:
        found.append(name.rpartition("/")[2])
    if provider.startswith("azure.") and (zone := _AZURE_PLACE.match(name)):
        found.append(name[zone.end() :])
    prefix, slash, rest = name.partition("/")
    while slash and rest:
        vendor = VENDOR_PREFIXES.get(prefix)
        if vendor is None or (vendor and provider not in vendor):
            break
        found.append(rest)
        prefix, slash, rest = rest.partition("/")
    for spelling in tuple(found):
        dashed = _COMPACT_DATE.sub(r"\1-\2-\3", spelling)
        if dashed != spelling:
            found.append(dashed)
    return tuple(dict.fromkeys(found))


def family(name: str) -> str | None:
    """`name` without its date, `-latest` or stable version, or None when it has none."""
    shorter = _GEMINI_STABLE.sub(r"\1", _SUFFIX.sub("", name))
    return shorter if shorter and shorter != name else None


def regional_doubt(name: str, listed: str) -> str:
    """Why the listed price may not be that of the region in a name on Bedrock or Azure; "" if it is.

    Lists have the prices of the USA. Claude costs the same in all commercial regions, other models do not.
    """
    model = name.rpartition("/")[2]
    prefix = _REGION.match(model)
    address = _IN_ADDRESS.match(name)
    region = prefix.group()[:-1] if prefix else address[1] or address[2] if address else ""
    if prefix and listed.startswith(prefix.group()):
        return ""
    zone = _AZURE_PLACE.match(name)
    if zone:
        return "" if zone[1] in _AZURE_EVERYWHERE else f"no price for the place {zone[1]} is listed"
    priced = not region.startswith("us-gov") and (".claude" in model or re.match("(?:us)?$|us-", region))
    return "" if priced else f"no price for the region {region} is listed"


def place(provider: str | None, model: str, address: str | None) -> str | None:
    """The place of inference by the server's address, where it changes the price: OpenAI's data residency, and Claude
    on Vertex AI. None if the address says nothing."""
    if address is None:
        return None
    if provider == "openai":
        return "regional" if _OPENAI_REGION.fullmatch(address) else None
    if provider != "gcp.vertex_ai" or "claude" not in model:
        return None
    return "regional" if _VERTEX_REGION.fullmatch(address) else None


def variants(name: str) -> tuple[str, tuple[str, ...]]:
    """OpenRouter's name of a model without its suffixes, and these: "a/b:free:online" is "a/b", ("free", "online")."""
    base, *suffixes = name.split(":")
    return base, tuple(suffixes)


def without_region(name: str) -> str | None:
    """A Bedrock id without the region of its inference profile, or None; `global.` has a price of its own."""
    match = _REGION.match(name)
    return name[match.end() :] if match else None


def is_same_model(name: str, start: int, end: int) -> bool:
    """Whether `name` is the model that `name[start:end]` names: all around it is address, date or version."""
    if end <= start:
        return False
    before = name[:start]
    if before and before[-1] not in "/.:" and before != "minimax-":
        return False
    if name[end - 4 : end] == ".ft-":
        return True  # what follows is the id of a fine-tune of exactly this base
    masked = _HARMLESS.sub(lambda match: " " * len(match.group()), name)
    if end < len(name) and masked[end] not in _SEPARATORS + " " and masked[end - 1] not in _SEPARATORS + " ":
        # The match ends inside a word: the whole word has to be harmless.
        while end > start and masked[end - 1] not in _SEPARATORS + " ":
            end -= 1
    return _harmless(masked[end:], preview=masked[:end].endswith(("preview", "exp")))


def _harmless(rest: str, *, preview: bool) -> bool:
    for separator, word in re.findall(r"([-@:/._]|^)([^-@:/._ ]*)", rest):
        if word == "":
            continue
        if separator in ("/", "."):
            return False
        small = word.isdigit() and len(word) <= 2
        if separator == ":" and (small or re.fullmatch(r"\d+k", word)):
            continue  # Bedrock's revision, and its context length: v1:0, v1:0:300k
        if small and preview:
            continue  # the month and day of a preview: -preview-05-06
        if word not in _WORDS and not _NUMBER.fullmatch(word):
            return False
        preview = preview or word in ("preview", "exp")
    return True
