"""The program's version, from its package."""

from __future__ import annotations

import re
from importlib.metadata import version

VERSION = version("postroom")


def is_newer(one: str, other: str) -> bool:
    """Whether a version comes after another: 0.10.0 after 0.9.1, and 0.2.0 after 0.2.0rc1."""
    return _order(one) > _order(other)


def _order(text: str) -> tuple[tuple[int, ...], str, int]:
    found = re.match(r"(\d+(?:\.\d+)*)(?:(\.dev|a|b|rc|\.post)(\d+))?", text)
    if found is None:
        return ((), "", 0)
    release = tuple(int(number) for number in re.sub(r"(\.0)+$", "", found[1]).split("."))
    # "." < "a" < "b" < "rc" < "~": what is final comes after what leads to it.
    kind = {None: "~", ".post": "~post"}.get(found[2], found[2])
    return (release, kind, int(found[3] or 0))
