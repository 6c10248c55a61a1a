"""`postroom webhooks verify`: a kept request, its verdict and its exit code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from postroom.cli.main import run
from postroom.testing import SignedRequest, signed

SECRET = "whsec_c2VjcmV0LW9mLXRoZS1zaG9w"


@pytest.fixture(autouse=True)
def _a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    Path("postroom.toml").write_text(
        """
        [webhooks.stripe]
        secrets = ["whsec_older", "env:SHOP_SECRET"]
        [[webhooks.stripe.handlers]]
        name = "shop"
        events = ["order.*"]
        sql = "public.on_order"
        """
    )


def verify(request: SignedRequest, *further: str, body: bytes | None = None) -> int:
    Path("body").write_bytes(request.body if body is None else body)
    headers = [part for name, value in request.headers.items() for part in ("--header", f"{name}: {value}")]
    return run(["webhooks", "verify", "--source", "stripe", "--body", "body", *headers, *further])


def test_a_signature_that_holds_is_told_with_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0; which secret it was, and who would handle it."""
    assert verify(signed("stripe", {"id": "evt_1", "type": "order.paid"}, SECRET)) == 0
    out, err = capsys.readouterr()
    assert "holds, by secret 2 of 2" in out
    assert "evt_1" in out
    assert "order.paid" in out
    assert "shop" in out
    assert err == ""


def test_json_says_the_same_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that holds, and of one that does not."""
    request = signed("stripe", {"id": "evt_1", "type": "user.new"}, SECRET)
    assert verify(request, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["holds"], found["secret"], found["event_id"], found["handlers"]) == (True, 2, "evt_1", [])

    assert verify(request, "--json", body=b'{ "id" : "evt_1", "type" : "user.new" }') == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["holds"], found["cause"], found["certain"]) == (False, "body_rewritten", True)


def test_one_that_does_not_hold_is_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, and what to do; never a secret."""
    request = signed("stripe", {"id": "evt_1"}, SECRET)
    assert verify(request, body=request.body + b"\n") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "without whitespace at its end" in err
    assert SECRET not in err


def test_a_kept_request_is_looked_at_as_of_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Now it is too old; at its own time it held."""
    request = signed("stripe", {"id": "evt_1"}, SECRET, at=1_700_000_000)
    assert verify(request) == 1
    assert "the signature holds, but it was signed" in capsys.readouterr().err
    assert verify(request, "--at", "1700000100") == 0
    assert verify(request, "--at", "2023-11-14T22:13:30+00:00") == 0
    assert verify(request, "--at", "noon") == 2


def test_the_body_may_come_by_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As --body -."""
    request = signed("stripe", b"\xff\x00", SECRET)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request.body)))
    header = f"stripe-signature: {request.headers['Stripe-Signature']}"
    assert run(["webhooks", "verify", "--source", "stripe", "--body", "-", "--header", header]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--source", "strip", "--body", "body"], "there is no source 'strip'; sources: stripe"),
        (["--source", "stripe", "--body", "missing"], "--body missing: No such file"),
        (
            ["--source", "stripe", "--body", "body", "--header", "nonsense"],
            "a header is written 'NAME: VALUE'",
        ),
        (["--source", "stripe"], "--body"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written can never work."""
    Path("body").write_bytes(b"{}")
    assert run(["webhooks", "verify", *arguments]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_mistake_in_postroom_toml_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the file and the field."""
    Path("postroom.toml").write_text('[webhooks.stripe]\nsecrets = ["env:NOT_THERE"]')
    Path("body").write_bytes(b"{}")
    assert run(["webhooks", "verify", "--source", "stripe", "--body", "body"]) == 1
    assert capsys.readouterr().err == (
        "postroom: postroom.toml: webhooks.stripe.secrets: the variable NOT_THERE is not set\n"
    )


def test_without_any_source_it_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The variable, or a table."""
    Path("postroom.toml").unlink()
    Path("body").write_bytes(b"{}")
    assert run(["webhooks", "verify", "--source", "stripe", "--body", "body"]) == 2
    assert "POSTROOM_STRIPE_WEBHOOK_SECRET" in capsys.readouterr().err


def test_a_body_beyond_the_sources_limit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The door would answer 413."""
    Path("postroom.toml").write_text(f'[webhooks.stripe]\nsecrets = ["{SECRET}"]\nbody_limit = 10')
    assert verify(signed("stripe", {"id": "evt_1"}, SECRET)) == 1
    assert "larger than 10 bytes" in capsys.readouterr().err
