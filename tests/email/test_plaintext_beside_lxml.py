"""The plain part beside the one that a tree of lxml's gives: another parser, written by others, agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.email.plaintext import plain_text
from tests.email import plaintext_by_tree

MAILS = sorted((Path(__file__).parent / "html").glob("*.html"))

WORDS = st.sampled_from(
    [
        "a",
        "bc",
        " ",
        "\n  ",
        "d e",
        " f",
        "g\n",
        "&amp;",
        "&nbsp;",
        "&lt;h&gt;",
        "é",
        "1 < 2",
        "\u200c",
        "x  y",
    ]
)
INLINE = st.sampled_from(
    [
        "b",
        "span",
        "span class='x>y'",
        'i title="<p>"',
        "FONT",
        "a name=x",
        "a href='https://a.test/?b=1&amp;c'",
    ]
)
BLOCK = st.sampled_from(["div", "p", "DIV", "h1", "blockquote", "center", "div style='color: red'"])
VOID = st.sampled_from(
    ["<br>", "<br/>", "<img src='x'>", "<hr>", "<!-- <p> -->", "<![if x]>", "<style>p > b {}</style>"]
)
HIDDEN = st.sampled_from(["<div style='display:none'>{}</div>", "<span style='DISPLAY: none'>{}</span>"])


def _within(element: str, content: str) -> str:
    return f"<{element}>{content}</{element.split(' ')[0]}>"


def _joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(parts, max_size=4).map("".join)


PHRASES = _joined(
    WORDS | VOID.filter(lambda tag: "hr" not in tag) | st.builds(_within, INLINE, _joined(WORDS))
)


def _blocks(content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Elements that break lines, some of them without the end that may be left out."""
    items = st.lists(content, min_size=1, max_size=3)
    rows = st.lists(st.lists(content, min_size=1, max_size=3), min_size=1, max_size=3)
    return st.one_of(
        st.builds(_within, BLOCK.filter(lambda name: name not in ("p", "h1")), content),
        st.builds(_within, st.sampled_from(["p", "h1"]), PHRASES),
        _joined(WORDS).map("<pre>x{}</pre>".format),
        PHRASES.map("<p>{}".format),
        st.builds(
            _within, st.sampled_from(["ul", "ol"]), items.map(lambda of: "".join(map("<li>{}".format, of)))
        ),
        st.builds(_within, st.just("ul"), items.map(lambda of: "\n".join(map("<li>{}</li>".format, of)))),
        rows.map(
            lambda of: _within("table", "".join("<tr>" + "".join(map("<td>{}".format, row)) for row in of))
        ),
        rows.map(
            lambda of: _within(
                "table", "\n".join(_within("tr", "".join(map("<td>{}</td>".format, row))) for row in of)
            )
        ),
        st.builds(str.format, HIDDEN, PHRASES),
    )


DOCUMENTS = st.recursive(PHRASES, lambda inner: _joined(inner | _blocks(inner)), max_leaves=12)


@pytest.mark.parametrize("mail", MAILS, ids=lambda mail: mail.stem)
def test_real_mails_read_as_by_a_tree(mail: Path) -> None:
    """Newsletters, receipts, what Outlook and Gmail write, old and broken HTML."""
    html = mail.read_text()
    assert plain_text(html) == plaintext_by_tree.plain_text(html)


@given(DOCUMENTS)
def test_nested_elements_read_as_by_a_tree(html: str) -> None:
    """Whatever elements a document nests, with or without the ends that may be left out."""
    assert plain_text(html) == plaintext_by_tree.plain_text(html)
