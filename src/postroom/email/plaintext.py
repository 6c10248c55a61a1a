"""
The plain part of an e-mail that has only HTML.

The same HTML gives the same text at every attempt, so nothing here depends on a clock: every step takes
time in proportion to the length. Tags are found as the HTML Standard's tokenizer finds them (13.2.5), and
ends that are not written are those of its tree construction (13.2.6) that show in a text. Walking a tree of
lxml's took three times as long (docs/decisions/0027).
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape
from itertools import groupby
from typing import NamedTuple

_CACHED_CHARACTERS_MAX = 16 * 1024
_LEVELS_MAX = 10
_CELL = "\x1f"  # between the cells of a row, until the table is aligned; no line has it, since it is a space
_MARK = "\x1e"  # where a tag was
_CELL_CHARACTERS_MAX = 40


def plain_text(html: str) -> str:
    """
    Turn HTML into text that reads well: links behind their words, lists, simple tables.

    Never fails: words of what is no HTML are words.
    """
    if len(html) <= _CACHED_CHARACTERS_MAX:
        return _cached(html)  # one newsletter goes to many
    return _convert(html)


def _convert(html: str) -> str:
    text = _Layout(_LEVELS_MAX, _CELL_CHARACTERS_MAX).write(html)
    if len(text) > 2 * len(html) + 10_000:  # lists in lists in lists, wide tables: spaces of megabytes
        return _Layout(0, 0).write(html)
    return text


_cached = lru_cache(maxsize=256)(_convert)


# Tokens

# Behind a tag's name. A quote counts at the beginning of a value only. Nothing is tried twice, and what has
# no end goes on to the document's, so the time is in proportion to the length.
_ATTRIBUTES = r"""(?:[^=>]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?+)*+"""


def _with_content(first: str, rest: str) -> str:
    """An element in which nothing is a tag but its own end; as in XML it is empty where it ends in />."""
    name = rf"{first}(?i:{rest})(?=[\s/>])"
    end = rf"</{name}{_ATTRIBUTES}(?:>|\Z)"
    return rf"{name}{_ATTRIBUTES}(?:(?<=/)>|>(?:[^<]++|<(?!/{name}))*+(?:{end}|\Z)|\Z)"


_TAG = rf"/?[{{}}][^\s/>]*+(?:>|{_ATTRIBUTES}(?:>|\Z))"
_TOKEN = re.compile(
    "(<(?:"
    + "|".join(
        [
            _TAG.format("a-rA-Ru-zU-Z"),  # most tags; the others are asked for three elements first
            _with_content("[sS]", "cript"),
            _with_content("[sS]", "tyle"),
            _with_content("[tT]", "itle"),
            _TAG.format("a-zA-Z"),
            r"!--(?:-?>|(?:[^-]++|-(?!-!?>))*+(?:--!?>|\Z))",
            r"[!?/][^>]*+(?:>|\Z)",
        ]
    )
    + "))"
)
# Control characters help nobody; the others are no characters.
_UNFIT = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
_NAME = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_ATTRIBUTE = re.compile(r"""([^\s=/]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>][^\s>]*)))?""")
_REFERENCE = re.compile(r"&[^\s&;]+;")
_LONG_NUMBER = re.compile(r"&#(?=[0-9])0*+([0-9]{0,9})[0-9]*+")
_HIDDEN = re.compile(r"(?i)display\s*:\s*none")
_TARGET = re.compile(r"(?:https?|mailto):\S{1,2000}\Z")

# So many line breaks stand before and behind these: two leave an empty line.
_BREAKS = (
    dict.fromkeys(["blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre"], 2)
    | dict.fromkeys(["address", "article", "aside", "body", "caption", "center", "dd", "details", "div"], 1)
    | dict.fromkeys(["dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr"], 1)
    | dict.fromkeys(["li", "main", "nav", "ol", "section", "summary", "table", "tbody", "tfoot"], 1)
    | dict.fromkeys(["thead", "tr", "ul"], 1)
    | dict.fromkeys(["br", "td", "th"], 0)
)
_GAPS = (" ", "\n", "\n\n", "")  # by the line breaks that are due; -1 stands behind _CELL
_ACTING = frozenset(["br", "li", "ol", "pre", "td", "th", "ul"])
_EMPTY = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
_DROPPED = frozenset(["script", "style", "title"])

# Elements whose end need not be written, and what begins instead.
_ROW_GROUPS = frozenset(["tbody", "tfoot", "thead"])
_CELLS = frozenset(["td", "th"])
_ENDED_BY = (
    {"p": frozenset(_BREAKS) - {"br"}, "li": frozenset(["li"]), "tr": _ROW_GROUPS | {"tr"}}
    | dict.fromkeys(["dd", "dt"], frozenset(["dd", "dt"]))
    | dict.fromkeys(_CELLS, _ROW_GROUPS | _CELLS | {"tr"})
    | dict.fromkeys(_ROW_GROUPS, _ROW_GROUPS)
)
_ENDS = {name: frozenset(ended for ended, by in _ENDED_BY.items() if name in by) for name in _BREAKS}
_TABLE_PARTS = _ROW_GROUPS | _CELLS | {"body", "table", "tr"}
_DEPTH_MAX = 200


class _Tag(NamedTuple):
    """
    A tag that changes the layout.

    Attributes:
        breaks: So many line breaks stand here.
        opens, closes: Both where the element is empty.
        ends: Elements that end where it begins.
        acts: Whether it does more than break lines.
        target: A link's.
    """

    name: str
    breaks: int = 0
    opens: bool = False
    closes: bool = False
    ends: frozenset[str] = frozenset()
    acts: bool = False
    target: str = ""


_HIDING = _Tag("", opens=True)


class _Tags(dict[str, _Tag | None]):
    """
    What tokens mean; None where they change nothing.

    Those that came before are known: the mails of a house are made of the same ones, but for links.
    """

    CHARACTERS_MAX = 200
    COUNT_MAX = 2_000

    def __missing__(self, token: str) -> _Tag | None:
        tag = _read_tag(token)
        if len(token) <= self.CHARACTERS_MAX and not (tag and tag.target):
            if len(self) >= self.COUNT_MAX:
                self.clear()
            self[token] = tag
        return tag


_TAGS = _Tags()


def _read_tag(token: str) -> _Tag | None:
    slash, name = _read_name(token)
    if not name:
        return None
    breaks, acts = _BREAKS.get(name, 0), name in _ACTING
    if slash:
        return _Tag(name, breaks, closes=True, acts=acts) if name in _BREAKS or name == "a" else None
    is_empty = _is_empty(token, name)
    attributes: dict[str, str] = {}
    if not is_empty and (name == "a" or "style" in token.lower()):
        attributes = _read_attributes(token)
    if name == "template" or _HIDDEN.search(attributes.get("style", "")):
        return _HIDING
    if name in _BREAKS:
        return _Tag(name, breaks, True, is_empty, _ENDS[name], acts)
    if name == "a":
        # Relative targets and anchors mean nothing outside their page.
        target = attributes.get("href", "").strip()
        return _Tag(name, opens=True, target=target if _TARGET.match(target) else "")
    return None


def _read_name(token: str) -> tuple[str, str]:
    """A slash where the tag is an end, and its element's name; nothing for what has no text."""
    match = _NAME.match(token)
    if not match or (name := match[2].lower()) in _DROPPED:
        return "", ""
    return match[1], name


def _is_empty(token: str, name: str) -> bool:
    return name in _EMPTY or token.endswith("/>")


def _read_attributes(token: str) -> dict[str, str]:
    """By their names in lower case; of two with one name the first one counts."""
    found = _ATTRIBUTE.findall(token, len("<a"), len(token) - 1)
    return {
        name.lower(): _REFERENCE.sub(lambda match: _unescaped(match[0]), "".join(values))
        for name, *values in reversed(found)
    }


def _without_hidden(tokens: list[str]) -> list[str]:
    """Texts and tags in turns, but for hidden elements: an empty one stands where they break lines."""
    kept, place = tokens[:1], 1
    while place < len(tokens):
        if _TAGS[tokens[place]] is not _HIDING:
            kept += tokens[place : place + 2]
            place += 2
            continue
        name = _read_name(tokens[place])[1]
        place, is_own_end = _end_of_hidden(tokens, place, name)
        kept += [("", "<div/>", "<p/>")[_BREAKS.get(name, 0)], tokens[place + 1] if is_own_end else ""]
        place += 2 * is_own_end
    return kept


def _end_of_hidden(tokens: list[str], start: int, name: str) -> tuple[int, bool]:
    """Where the tag stands that ends an element, and whether it is its own."""
    inner = [name]
    for place in range(start + 2, len(tokens), 2):
        slash, name = _read_name(tokens[place])
        if not slash:
            while inner and inner[-1] in _ENDS.get(name, ()):
                inner.pop()
            if not inner:
                return place, False
            if name and not _is_empty(tokens[place], name) and len(inner) < _DEPTH_MAX:
                inner.append(name)
        elif name in inner:
            while inner.pop() != name:
                pass
            if not inner:
                return place, True
        elif name in _BREAKS:  # the end of what it is in
            return place, False
    return len(tokens), False


# Text


class _Layout:
    """
    Writes a document as text.

    Attributes:
        _out: Lines, and what stands between them.
        _open: Names of the elements that are open and break lines, behind an empty one.
        _lists: Of each list the number of its last item; None where they have none.
        _link: How long `_out` was and where in the line a link begins, and its target.

    Args:
        levels_max: Lists are indented so many times at most.
        cell_characters_max: Columns are filled up to so many characters at most.
    """

    def __init__(self, levels_max: int, cell_characters_max: int) -> None:
        self._levels_max = levels_max
        self._cell_characters_max = cell_characters_max
        self._out: list[str] = []
        self._open = [""]
        self._lists: list[int | None] = []
        self._bullet = ""
        self._link: tuple[int, int, str] | None = None
        self._pre = 0

    def write(self, html: str) -> str:
        """The text, with one line break at its end."""
        tags, texts = _split(html)
        out, open_elements = self._out, self._open
        line, due = texts[0], 2  # line breaks that stand before the next line
        for (name, breaks, opens, closes, ends, acts, target), text in zip(tags, texts[1:], strict=True):
            if name == "a":
                line += self._end_link(line)  # in place: a line of many links is not copied for each
                if opens:
                    self._link = (len(out), len(line), target)
                line += text
                continue
            if line.strip():
                due = self._put(line, due)
            line = text
            if opens:
                while open_elements[-1] in ends:
                    due = max(due, self._leave(open_elements.pop()))
            elif open_elements[-1] != name:
                due = max(due, self._end_unclosed(name))
            if breaks > due:
                due = breaks
            if opens:
                if acts:
                    due = self._begin(name, due)
                if not closes and len(open_elements) < _DEPTH_MAX:
                    open_elements.append(name)
                elif acts:
                    self._leave(name)
            elif open_elements[-1] == name:
                open_elements.pop()
                if acts:
                    self._leave(name)
        self._put(line + self._end_link(line), due)
        written = "".join(out)
        if _CELL in written:
            written = _aligned(written, self._cell_characters_max)
        return written.strip("\n") + "\n"

    def _put(self, line: str, due: int) -> int:
        """Write a line, where it has words; gives the line breaks that are due then."""
        if self._pre:
            line = _preformatted(line)
        elif line.isprintable() and "  " not in line:
            line = line.strip(" ")
        else:
            line = " ".join(_UNFIT.sub("", line).split())
        if not line:
            return due
        self._out.append(_GAPS[due])
        if due > 0 and (self._lists or self._bullet):
            level = min(max(len(self._lists), 1), self._levels_max)
            self._out.append("  " * level + (self._bullet or "  "))
            self._bullet = ""
        self._out.append(line)
        return 0

    def _begin(self, name: str, due: int) -> int:
        match name:
            case "br":
                return min(max(due, 0) + 1, 2)
            case "td" | "th" if due <= 0:
                self._out.append(_CELL)
                return -1
            case "ul" | "ol":
                self._lists.append(0 if name == "ol" else None)
            case "li":
                number = self._lists[-1] if self._lists else None
                if number is not None:
                    self._lists[-1] = number + 1
                self._bullet = "* " if number is None else f"{number + 1}. "
            case "pre":
                self._pre += 1
        return due

    def _leave(self, name: str) -> int:
        """Gives the line breaks behind the element."""
        match name:
            case "ul" | "ol":
                self._lists.pop()
            case "li":
                self._bullet = ""
            case "pre":
                self._pre -= 1
        return _BREAKS[name]

    def _end_unclosed(self, name: str) -> int:
        """Leave what an element's end ends with it; what is in a cell ends nothing outside of it."""
        if name not in self._open:
            return 0
        for place in range(len(self._open) - 1, 0, -1):
            if self._open[place] == name:
                breaks = [self._leave(ended) for ended in reversed(self._open[place + 1 :])]
                del self._open[place + 1 :]
                return max(breaks)
            if self._open[place] in _CELLS and name not in _TABLE_PARTS:
                break
        return 0

    def _end_link(self, line: str) -> str:
        """What comes behind the line where a link ends: its target, unless its words end with it."""
        if self._link is None:
            return ""
        (lines, start, target), self._link = self._link, None
        if lines != len(self._out):
            start = 0
        words = line[start:].rstrip()
        if not words and start == 0:
            words = self._out[-1] if lines != len(self._out) else ""
        target = target.removeprefix("mailto:")
        if not target or words.endswith(target):
            return ""
        return f" <{target}>" if line else f"<{target}>"


def _split(html: str) -> tuple[list[_Tag], list[str]]:
    """The tags that change the layout, and the texts before, between and behind them."""
    tokens = _TOKEN.split(html.replace(_MARK, " "))
    found = list(map(_TAGS.__getitem__, tokens[1::2]))
    tags = list(filter(None, found))
    if _HIDING in tags:
        tokens = _without_hidden(tokens)
        found = list(map(_TAGS.__getitem__, tokens[1::2]))
        tags = list(filter(None, found))
    tokens[1::2] = [_MARK if tag else "" for tag in found]
    text = "".join(tokens)
    if "&" in text:
        text = _unescaped(text)
    return tags, text.split(_MARK)


def _unescaped(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # int() takes 4,300 digits at most; with nine it is no character either (13.2.5.80)
        return unescape(_LONG_NUMBER.sub(r"&#0\1", text))


def _preformatted(text: str) -> str:
    """Lines without trailing spaces, at most one of them empty in a row, none at the ends."""
    lines = [_UNFIT.sub("", line).rstrip() for line in text.splitlines()]
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(kept).strip("\n")


def _aligned(text: str, characters_max: int) -> str:
    """Rows with the same number of cells, one under the other, get columns."""
    lines: list[str] = []
    for count, rows in groupby(text.split("\n"), key=lambda line: line.count(_CELL)):
        if not count:
            lines.extend(rows)
            continue
        cells = [row.split(_CELL) for row in rows]
        widths = [min(max(map(len, column)), characters_max) for column in zip(*cells, strict=True)]
        lines.extend("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)
