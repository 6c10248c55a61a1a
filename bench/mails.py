"""The mails that are sent: the same for us and for every peer."""

from __future__ import annotations

HTML_BYTES = 2_048
SENDER = "Shop <orders@shop.example.com>"

_LINE = (
    "<p>Thank you for your order. It leaves our house tomorrow, and <b>we tell you</b> when it does.</p>\n"
)


def short_html(size: int) -> str:
    """So many bytes of HTML, for work that is like a job queue's."""
    return f"<p>{'x' * (size - 7)}</p>"


def html(number: int | str = "") -> str:
    """2 KB of HTML as an application would write it, with something of its own in each mail."""
    head = (
        f'<!doctype html>\n<html><head><meta charset="utf-8"></head>\n<body>\n<h1>Your order {number}</h1>\n'
    )
    tail = "</body></html>\n"
    lines = (HTML_BYTES - len(head) - len(tail)) // len(_LINE)
    body = head + _LINE * lines
    return body + " " * (HTML_BYTES - len(body) - len(tail)) + tail


def subject(number: int | str) -> str:
    """Tells the mails apart."""
    return f"Order {number}"


def recipient(number: int, recipients: int) -> str:
    """Each recipient gets every `recipients`-th mail."""
    return f"customer{number % recipients}@example.com"
