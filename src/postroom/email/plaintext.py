"""
The plain part of an e-mail that has only HTML.

The same HTML gives the same text at every attempt, so nothing here depends on a clock: what
could take long is recognised by its size and shape, and gets the cheap conversion.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape

from inscriptis import get_text
from inscriptis.model.config import ParserConfig
from inscriptis.model.css import CssParse
from inscriptis.model.html_document_state import HtmlDocumentState
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping

HTML_CHARACTERS_MAX = 256 * 1024
"""Longer HTML gets the cheap conversion; inscriptis takes about 1 ms for each 4 KB."""

TAGS_MAX = 20_000
"""HTML with more tags gets it too; inscriptis takes about 10 us for each."""

# libxml2 compares each attribute of a tag with those before it: 20,000 of them take 1.2 s, 5,000 of
# them 75 ms. Each is behind one of these characters.
_ATTRIBUTES_MAX = 5_000
_SEPARATOR = re.compile(r"[\s/=]")
_CACHED_CHARACTERS_MAX = 16 * 1024


def plain_text(html: str) -> str:
    """
    Turn HTML into text that reads well: links behind their words, lists, simple tables.

    Never fails: HTML that the library cannot take loses its tags and keeps its words.
    """
    if len(html) <= _CACHED_CHARACTERS_MAX:
        return _cached(html)  # one newsletter goes to many
    return _convert(html)


def _convert(html: str) -> str:
    if _takes_long(html):
        return _without_tags(html)
    try:
        text = get_text(html, _CONFIG)
    except (RecursionError, ValueError, AttributeError, IndexError, KeyError, TypeError, SyntaxError):
        # Whatever hostile HTML does to lxml and inscriptis: an odd plain part delays no e-mail.
        return _without_tags(html)
    if len(text) > 2 * len(html) + 10_000:  # lists in lists in lists: indentation of megabytes
        return _without_tags(html)
    return _tidy(_TARGET.sub(_unless_said, text))


def _takes_long(html: str) -> bool:
    if len(html) > HTML_CHARACTERS_MAX or html.count("<") > TAGS_MAX:
        return True
    runs = (run for run in html.split("<") if len(run) > _ATTRIBUTES_MAX)
    return any(len(_SEPARATOR.findall(run)) > _ATTRIBUTES_MAX for run in runs)


_cached = lru_cache(maxsize=256)(_convert)


def _without_tags(html: str) -> str:
    """Drop tags, comments, scripts and styles in one pass each; linear in the length."""
    for name in ("script", "style", "title"):
        html = _without_element(html, name)
    html = re.sub(r"(?i)<(?:br|/p|/div|/tr|/li|/h[1-6])\b[^<>]*>", "\n", html)
    text = unescape(re.sub(r"<[^<>]*>", " ", html))
    return _tidy(re.sub(r"(?m)^ +| +$", "", re.sub(r"[ \t]{2,}", " ", text)))


def _without_element(html: str, name: str) -> str:
    opening, closing = re.compile(rf"(?i)<{name}\b"), re.compile(rf"(?i)</{name}\b")
    kept: list[str] = []
    position = 0
    while (start := opening.search(html, position)) and (end := closing.search(html, start.end())):
        kept.append(html[position : start.start()])
        position = end.start()  # at the closing tag, which is dropped with the other tags
    return "".join(kept) + html[position:]


def _tidy(text: str) -> str:
    """Lines without trailing spaces, at most one of them empty in a row, none at the ends."""
    lines = [line.rstrip() for line in re.split(r"\r\n|\r|\n", text)]
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    # Control characters come out of references such as &#7; and help nobody.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", "\n".join(kept).strip("\n")) + "\n"


def _open_link(state: HtmlDocumentState, attributes: dict[str, str]) -> None:
    target = attributes.get("href", "").strip()
    # Relative targets and anchors mean nothing outside their page.
    state.link_target = target if re.match(r"(?:https?|mailto):\S{1,2000}\Z", target) else ""


def _close_link(state: HtmlDocumentState) -> None:
    if state.link_target:
        state.tags[-1].write(f" <{state.link_target.removeprefix('mailto:')}>")
        state.link_target = ""


_TARGET = re.compile(r" <([^<>\s]{1,2000})>")


def _unless_said(target: re.Match[str]) -> str:
    """The target of a link, or nothing where the words of the link are the target."""
    return "" if target.string.endswith(target[1], 0, target.start()) else target[0]


def _hide(style: str, element: HtmlElement) -> None:
    """
    Of a style, only `display: none` counts: it hides the preheader of a newsletter.

    Margins and paddings are left alone: 11 KB of nested ones made 2 GB of spaces.
    """
    if re.search(r"(?i)display\s*:\s*none", style):
        CssParse.attr_display("none", element)


_CONFIG = ParserConfig(
    display_links=True,
    custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping({"a": _open_link}, {"a": _close_link}),
)
_CONFIG.attribute_handler.attribute_mapping = {"style": _hide}
