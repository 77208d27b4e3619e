"""Text from outside, made safe to show: in a terminal, a log line, an error message.

Tags, model names, scopes and URLs may come from anybody. Shown as they are, they can steer a terminal, forge a log
line, swap the order of what is read, or give a password away.
"""

from __future__ import annotations

import re

_SPACES = frozenset("\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
"""Wide and narrow spaces: Python does not call them printable; they do no harm."""
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Characters without a shape that Python calls printable."""
_SUPPLEMENT = ("\U000e0100", "\U000e01ef")  # variation selectors without a shape
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOSTS = re.compile(r"(?:[^:\[\]@,]+|\[[0-9A-Fa-f:.%]+\])?(?::\d*)?(?:,(?:[^:\[\]@,]+|\[[0-9A-Fa-f:.%]+\])(?::\d*)?)*")
_FILES = frozenset({"sqlite", "file"})
"""Schemes whose rest is the path of a file."""
HIDDEN = "***"
"""Stands for what is not shown."""


def printable(text: str) -> str:
    r"""`text` with every character that has no visible shape written as an escape, such as \x1b, \n or \u202e.

    Control characters, line breaks of all kinds, characters that change the direction of writing, other invisible
    characters, and code points without a meaning are escaped. Letters, signs, emoji and spaces stay. The result is
    one line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_visible(character) else _escaped(character) for character in text)


def _is_visible(character: str) -> bool:
    if character.isprintable():
        return character not in _UNSEEN and not _SUPPLEMENT[0] <= character <= _SUPPLEMENT[1]
    return character in _SPACES


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shown_url(url: str, *, path: bool = True) -> str:
    """`url` without its secrets, on one line.

    User, password, the values of the query and the fragment become "***". `path=False` hides the path as well: the
    URL of a webhook is a secret by its path. Of a URL that is mistyped, so that nobody can say where its password
    ends, only the scheme is shown. Paths of files (sqlite:///…, file:///…) have no secrets and are shown whole.
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, rest = "", url
    elif not _SCHEME.fullmatch(scheme):
        return HIDDEN
    if scheme in _FILES:
        return printable(url)
    return printable(f"{scheme}{slashes}{_rest(rest, path=path)}")


def _rest(rest: str, *, path: bool) -> str:
    """What is shown after the scheme."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    user, at, hosts = authority.rpartition("@")
    if "@" in after or not _HOSTS.fullmatch(hosts):  # a password with / ? # or : in it, perhaps
        return HIDDEN
    place, question, query = after.partition("#")[0].partition("?")
    if place.strip("/") and not path:
        place = f"/{HIDDEN}"
    values = "&".join(_without_value(part) for part in query.split("&")) if question else ""
    return f"{HIDDEN if user else ''}{at}{hosts}{place}{question}{values}"


def _without_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}={HIDDEN}" if equals else HIDDEN
