"""The plain part that is made from HTML."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.email.plaintext import plain_text


def test_html_becomes_text_that_reads_well() -> None:
    """Links stand behind their words, unless the words say them; styles and hidden text are dropped."""
    html = """<html><head><title>T</title><style>p {color: red}</style></head><body>
        <div style="display: none">preheader</div><h1>Order 4711</h1>
        <p>Dear Zoë,<br>see <a href="https://example.org/o?a=1&amp;b=2">your order</a> or
        <a href="mailto:help@example.org">help@example.org</a>, <a href="#top">top</a>.</p>
        <ul><li>One</li><li>Two &amp; three</li></ul>
        <table><tr><td>Sum</td><td>1,00</td></tr></table><script>alert(1)</script></body></html>"""
    assert plain_text(html) == (
        "Order 4711\n\nDear Zoë,\n"
        "see your order <https://example.org/o?a=1&b=2> or help@example.org, top.\n\n"
        "  * One\n  * Two & three\nSum  1,00\n"
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<br>b<br><br>c<div>d</div>e", "a\nb\n\nc\nd\ne"),
        ("  <b>a</b> <i>b</i>c \n\n d&nbsp; <span> e</span>", "a bc d e"),
        ("<ol><li>a<ul><li>b<br>c</ul><li>d</ol>e", "  1. a\n    * b\n      c\n  2. d\ne"),
        (
            "<table><tr><th>What<th>Sum<tr><td>Shoes<td>10<tr><td>Hat<td></table>",
            "What   Sum\nShoes  10\nHat",
        ),
        ("<table><tr><td><p>a<p>b<td><table><tr><td>c</table></table>", "a\n\nb\n\nc"),
        ("<pre>\n a\n   b\n</pre>c", " a\n   b\n\nc"),
        ("<a href=https://a.test><img src=logo></a>", "<https://a.test>"),
        ("x<a href=https://a.test style=display:none>y</a>z", "xz"),
        ("<ul style='display: none'><li>a</ul><ul><li>b</ul>", "  * b"),
        ("<li>a<li>b", "  * a\n  * b"),
        ("a<!-- b -->c<script>d</script>e", "ace"),
        ("<blockquote>a</blockquote>b", "a\n\nb"),
        ("&#7;a&lt;b&gt;", "a<b>"),
        ("\x1fa\x1fb", "a b"),
        ("no tags", "no tags"),
        ("<p>a</p></body></html><p>footer", "a\n\nfooter"),
        ("a<b>&emsp;b</b>", "a b"),
        ("<a href=https://a.test><table><tr><td>Buy</table></a>", "Buy\n<https://a.test>"),
        ("<script>'<p style=\"display:none\">'</script>a<title/>b", "ab"),
        ("<li><div style='display:none'>a</li><li>b", "  * b"),
        ("<!-- nothing -->", ""),
        (f"a&#{'9' * 5_000};b&#{'0' * 5_000}67;&#68&#;", "a\ufffdbCD&#;"),
        (f"<a href='https://a.test/&#{'9' * 5_000};'>x</a>", "x <https://a.test/\ufffd>"),
    ],
)
def test_layout(html: str, text: str) -> None:
    """Blocks, lists, tables and links, one by one."""
    assert plain_text(html) == text + "\n"


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 20_000,
        "<table><tr><td>" + "x" * 10_000 + "<td>y" + "<tr><td>x<td>y" * 2_000,
        "<table>" * 100 + "<tr><td>x<td>y" * 1_000,
        "<!--" * 50_000,
        "<a href='" * 25_000,
        "<td>x" * 50_000,
        "<a " + " ".join(f"x{number}=1" for number in range(20_000)) + ">",
        "<a " + "".join(f"x{number}=''" for number in range(20_000)) + ">",
        "<div style='padding-left: 9999em'>" * 200 + "x<br>" * 1_000,
        "<ul>" * 200 + "<li>x" * 10_000,
        "<p>x" * 500_000,
        "<div>" * 200_000 + "</p></td>" * 200_000,
        "<i style='display:none'>" * 50_000,
        "<" * 500_000,
        "<style>" * 100_000,
        "<" * 300 + "<i style=display:none></i>i style=display:none>" * 3_000,
        "&#" * 100_000,
        ("<a href=http://x>" + "w" * 280) * 80_000,
        '<?xml version="1.0" encoding="utf-16"?><p>x',
        "\ud800<p>",
        "",
    ],
    ids=lambda html: html[:12],
)
def test_hostile_html_costs_little(html: str) -> None:
    """No HTML takes seconds or grows into megabytes: the run's time-out of 120 s guards the rest."""
    assert len(plain_text(html)) <= 2 * len(html) + 10_000


@pytest.mark.parametrize("filler", ["x" * 256 * 1024, "<i>" * 20_001])
def test_long_html_keeps_its_words(filler: str) -> None:
    """It loses its tags, its scripts and nothing else."""
    text = plain_text(f"<p>first</p><script>if (a<b) code()</script><p>a &lt; b</p>{filler}<p>last</p>")
    assert text.startswith("first\n")
    assert "\na < b\n" in text
    assert text.endswith("last\n")
    assert "code" not in text


@given(st.text(st.sampled_from("<>/='\"&;!-[]?abpdivtrli \n\t\x00\x1f é"), max_size=300))
def test_any_html_becomes_text(html: str) -> None:
    """Nothing makes it fail, and it is the same each time."""
    text = plain_text(html)
    assert text == plain_text(html)
    assert text.endswith("\n")
