"""The log: one line an event, nothing secret in it, and nobody can forge a line."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from postroom import log


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    log._OUTPUT.level, log._OUTPUT.as_text, log._OUTPUT.in_colour = 20, False, False


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capfd.readouterr()
    assert out == ""
    return err.removesuffix("\n").split("\n")


def test_json_line_has_its_time_level_name_and_values(capfd: pytest.CaptureFixture[str]) -> None:
    """JSON: one object a line on stderr, the context of the logger included; stdout stays empty."""
    log.configure("json")
    log.get_logger(worker="w").info("email.sent", id="1", attempts=2, reply=None)
    line = json.loads(lines(capfd)[0])
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
    assert line == {
        "level": "info", "event": "email.sent", "worker": "w", "id": "1", "attempts": 2, "reply": None,
    }  # fmt: skip


def test_a_value_may_have_any_name(capfd: pytest.CaptureFixture[str]) -> None:
    """Such as `method`, of http.request: no name of the logger's own is in the way."""
    log.configure("json")
    log.get_logger().info("http.request", method="POST", values=1)
    line = json.loads(lines(capfd)[0])
    assert (line["method"], line["event"]) == ("POST", "http.request")


def test_text_line_reads_as_words(capfd: pytest.CaptureFixture[str]) -> None:
    """Text: time, level, name, then values, quoted where they hold a space."""
    log.configure("text")
    log.get_logger().warning("email.put_back", id=1, reply="450 try later", ok=True)
    line = lines(capfd)[0].split(" ", 1)[1]
    assert line == 'warning email.put_back id=1 reply="450 try later" ok=true'


def test_format_follows_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a setting JSON is written where stderr is no terminal."""
    log.configure()
    log.get_logger().info("x.y")
    assert lines(capfd)[0].startswith("{")


def test_level_holds_for_loggers_that_were_made_before(capfd: pytest.CaptureFixture[str]) -> None:
    """Loggers are made at import; the level that is set later holds for them."""
    logger = log.get_logger()
    log.configure("text", "warning")
    logger.info("not.seen")
    logger.warning("is.seen")
    assert [line.split()[2] for line in lines(capfd)] == ["is.seen"]


@given(st.text(), st.text(alphabet=st.characters()), st.text(min_size=1))
def test_no_value_can_end_its_line_or_speak_to_the_terminal(name: str, value: str, key: str) -> None:
    """Whatever the name, the value and the key hold, one event is one line of printable characters."""
    for log_format in ("text", "json"):
        written = _written(log_format, name, {key: value, "list": [value], "id": 1})
        assert written.endswith("\n")
        line = written[:-1]
        if log_format == "text":
            assert line.isprintable()
            assert len(line.splitlines()) == 1
        else:
            assert "\n" not in line
            assert json.loads(line)["id"] == 1


@given(st.text(min_size=1))
def test_no_value_can_look_like_another_key(value: str) -> None:
    """In text a value with a space, a quote or an equals sign stands in quotes, which it cannot end."""
    written = _written("text", "x.y", {"reply": value, "id": "real"}).rstrip("\n")
    assert written.endswith(" id=real")
    shown = written.split(" reply=", 1)[1].removesuffix(" id=real")
    if set(value) & set(' ="\n\t'):
        assert shown.startswith('"')
        assert '"' not in shown[1:-1].replace("\\\\", "").replace('\\"', "")


def _written(log_format: str, name: str, values: dict[str, object]) -> str:
    stderr, sys.stderr = sys.stderr, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    try:
        log._OUTPUT.as_text = log_format == "text"
        for reserved in ("event", "level", "timestamp", "exc_info", "id", "list"):
            if reserved in values and reserved not in ("id", "list"):
                del values[reserved]
        log.get_logger().bind(**values).info(name)
        written = sys.stderr.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode("utf-8")
    finally:
        sys.stderr = stderr


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_and_bodies_are_hidden(capfd: pytest.CaptureFixture[str], log_format: log.Format) -> None:
    """A value under a telling name, at any depth, and what looks like a key anywhere, never comes out."""
    log.configure(log_format)
    log.get_logger().info(
        "x.y",
        password="geheim",
        html="geheim",
        Authorization="geheim",
        stripe_secret="geheim",
        request={"body": "geheim", "deep": [{"text": "geheim"}]},
        url="postgresql://user:geheim@host/db and smtp://u:ge/heim@host",
        transports="resend://geheim resend+http://geheim@127.0.0.1:9000",
        header="Bearer geheim",
        key_in_text="the key re_geheimgeheim and whsec_geheim123 failed",
        raw=b"geheim",
    )
    line = lines(capfd)[0]
    assert "heim" not in line
    assert "user:[hidden]@host" in line


def test_long_value_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    """A server's endless reply costs a line of bounded length."""
    log.configure("json")
    log.get_logger().info("x.y", reply="a" * 100_000)
    assert len(lines(capfd)[0]) < 3_000


def test_value_that_json_cannot_hold_is_written_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """A lone surrogate, a number of 70 digits, an object: none stops the program."""
    log.configure("json")
    log.get_logger().info("x.y", broken="\ud800", big=10**70, thing=object(), nan=float("nan"))
    assert json.loads(lines(capfd)[0])["big"] == 10**70


def test_error_is_one_line_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback stands in a value of the same line."""
    log.configure("text")
    try:
        raise ValueError("no")
    except ValueError:
        log.get_logger().exception("x.failed")
    assert len(lines(capfd)) == 1


def test_library_speaks_in_the_same_way(capfd: pytest.CaptureFixture[str]) -> None:
    """A library's warning is an event of ours; its information is left out."""
    log.configure("json")
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("careful\nnow")
    written = lines(capfd)
    assert len(written) == 1
    line = json.loads(written[0])
    assert (line["event"], line["logger"], line["message"]) == (
        "library.said",
        "aiohttp.server",
        "careful\nnow",
    )


def test_closed_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written is lost; the work goes on."""
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    log.get_logger().info("x.y")
    monkeypatch.setattr(sys, "stderr", None)
    log.get_logger().info("x.y")


def test_program_keeps_its_own_structlog(capfd: pytest.CaptureFixture[str]) -> None:
    """A program that uses structlog itself finds its configuration untouched."""
    before = structlog.get_config()
    log.configure("json")
    log.get_logger().info("x.y")
    assert structlog.get_config() == before


def test_json_has_no_character_that_a_terminal_obeys(capfd: pytest.CaptureFixture[str]) -> None:
    """Also those that JSON leaves as they are: DEL, and the controls of one character beyond ASCII."""
    log.configure("json")
    value = "".join(map(chr, [*range(0x20), *range(0x7F, 0xC1)]))
    log.get_logger().info("said", value=value)
    line = capfd.readouterr().err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)
    assert json.loads(line)["value"] == value
