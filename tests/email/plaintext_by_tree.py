"""
The plain part by way of a tree of lxml's, as postroom made it before docs/decisions/0027.

The present one is held against it: libxml2 was written by others, and says which element has which text.
"""

from __future__ import annotations

import re
from itertools import groupby

from lxml import etree


def plain_text(html: str) -> str:
    """Turn HTML into text, with what libxml2 says is in which element."""
    root = etree.fromstring(html.encode("utf-8", "replace"), _PARSER)
    return _tidy("" if root is None else _Writer().write(root))


def _tidy(text: str) -> str:
    """Lines without trailing spaces, at most one of them empty in a row, none at the ends."""
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    if not all(map(str.isprintable, kept)):
        # Control characters come out of references such as &#7; and help nobody.
        kept = [_CONTROL.sub("", line) for line in kept]
    return "\n".join(kept).strip("\n") + "\n"


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PARSER = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
_DROPPED = frozenset({"head", "script", "style", "template", "title"})
# So many line breaks stand before and behind these: two leave an empty line.
_BREAKS = (
    dict.fromkeys(["blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre"], 2)
    | dict.fromkeys(["address", "article", "aside", "body", "caption", "center", "dd", "details", "div"], 1)
    | dict.fromkeys(["dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr"], 1)
    | dict.fromkeys(["li", "main", "nav", "ol", "section", "summary", "table", "tbody", "tfoot"], 1)
    | dict.fromkeys(["thead", "tr", "ul"], 1)
)
_OPENED = frozenset({"a", "br", "li", "ol", "pre", "td", "th", "ul"})
_CLOSED = frozenset({"a", "li", "ol", "pre", "ul"})
_LEVELS_MAX = 10
_CELL = "\x1f"  # between the cells of a row, until the table is aligned; no text has it, since it is a space
_CELL_CHARACTERS_MAX = 40
_HIDDEN = re.compile(r"(?i)display\s*:\s*none")
_TARGET = re.compile(r"(?:https?|mailto):\S{1,2000}\Z")


class _Writer:
    """
    Writes a tree as text in one walk.

    Attributes:
        _out: Pieces of text.
        _breaks: With how many line breaks they end; as though two stood before the first one.
        _wanted: So many must stand before the next word.
        _space: Whether a space must.
    """

    def __init__(self) -> None:
        self._out: list[str] = []
        self._breaks = 2
        self._wanted = 0
        self._space = False
        self._lists: list[int | None] = []  # the number of the last item; None where they have none
        self._bullet = ""
        self._links: list[tuple[int, str]] = []
        self._pre = 0

    def write(self, root: etree._Element) -> str:
        """The text, with spaces at the ends of lines and empty lines that are too many."""
        walk, hidden = etree.iterwalk(root, events=("start", "end")), None
        for event, element in walk:
            tag = element.tag
            if event == "start":
                style = element.get("style")
                if tag in _DROPPED or (style is not None and _HIDDEN.search(style)):
                    walk.skip_subtree()
                    hidden = element  # its end is next, and its tail is not hidden
                    continue
                if (breaks := _BREAKS.get(tag, 0)) > self._wanted:
                    self._wanted = breaks
                if tag in _OPENED:
                    self._open(tag, element)
                said = element.text
            else:
                if (breaks := _BREAKS.get(tag, 0)) > self._wanted:
                    self._wanted = breaks
                if tag in _CLOSED and element is not hidden:
                    self._close(tag)
                said = element.tail
            if not said:
                continue
            if self._pre:
                self._put(said.strip("\n"))
            elif words := said.split():
                if said[0] in " \n\t\r\xa0":
                    self._space = True
                self._put(" ".join(words))
                self._space = said[-1] in " \n\t\r\xa0"
            else:
                self._space = True
        text = "".join(self._out)
        return _aligned(text) if _CELL in text else text

    def _open(self, tag: str, element: etree._Element) -> None:
        match tag:
            case "br":
                self._break_line()
            case "td" | "th":
                if not self._breaks and not self._wanted:
                    self._out.append(_CELL)
            case "a":
                target = (element.get("href") or "").strip()
                # Relative targets and anchors mean nothing outside their page.
                self._links.append((len(self._out), target if _TARGET.match(target) else ""))
            case "ul" | "ol":
                self._lists.append(0 if tag == "ol" else None)
            case "li":
                number = self._lists[-1] if self._lists else None
                if number is not None:
                    self._lists[-1] = number + 1
                self._bullet = "* " if number is None else f"{number + 1}. "
            case "pre":
                self._pre += 1

    def _close(self, tag: str) -> None:
        match tag:
            case "a":
                start, target = self._links.pop()
                target = target.removeprefix("mailto:")
                if target and not "".join(self._out[start:]).endswith(target):
                    self._space = True
                    self._put(f"<{target}>")
            case "ul" | "ol":
                self._lists.pop()
            case "li":
                self._bullet = ""
            case "pre":
                self._pre -= 1

    def _put(self, words: str) -> None:
        if self._wanted > self._breaks:
            self._out.append("\n" * (self._wanted - self._breaks))
            self._breaks = self._wanted
        if self._breaks:
            if self._lists or self._bullet:
                level = min(max(len(self._lists), 1), _LEVELS_MAX)
                self._out.append("  " * level + (self._bullet or "  "))
                self._bullet = ""
        elif self._space and self._out[-1] != _CELL:
            self._out.append(" ")
        self._out.append(words)
        self._breaks = self._wanted = 0
        self._space = False

    def _break_line(self) -> None:
        if self._wanted > self._breaks:
            self._out.append("\n" * (self._wanted - self._breaks))
            self._breaks = self._wanted
        self._wanted = 0
        if self._out:
            self._out.append("\n")
            self._breaks += 1
        self._space = False


def _aligned(text: str) -> str:
    """Rows with the same number of cells, one under the other, get columns."""
    lines: list[str] = []
    for count, rows in groupby(text.split("\n"), key=lambda line: line.count(_CELL)):
        if not count:
            lines.extend(rows)
            continue
        cells = [row.split(_CELL) for row in rows]
        widths = [min(max(map(len, column)), _CELL_CHARACTERS_MAX) for column in zip(*cells, strict=True)]
        lines.extend("  ".join(map(str.ljust, row, widths)) for row in cells)
    return "\n".join(lines)
