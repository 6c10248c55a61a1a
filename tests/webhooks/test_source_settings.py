"""Sources as postroom.toml and the environment say them, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from postroom.errors import ConfigError
from postroom.settings import load_settings
from postroom.webhooks.places import Body, Header
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.source import BODY_BYTES_MAX, Handler, Lane, Source
from postroom.webhooks.source_settings import read_sources
from tests.webhooks.samples import AT_S, sample

STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sources_of(toml: str, environ: dict[str, str] | None = None) -> dict[str, Source]:
    Path("postroom.toml").write_text(toml)
    return read_sources(load_settings(), environ or {})


def mistake_in(toml: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        sources_of(toml, environ)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix("postroom.toml: ")


def acme(lines: str) -> str:
    return f'[webhooks.acme]\nscheme = "github"\nsecrets = ["s3cret-word"]\n{lines}'


def handler(lines: str) -> str:
    return acme(f"[[webhooks.acme.handlers]]\n{lines}")


def test_without_any_table_or_variable_there_is_no_source() -> None:
    """Every address below /webhooks is then unknown."""
    assert read_sources(load_settings()) == {}


def test_the_example_of_the_contract_is_read() -> None:
    """Each of its lines counts."""
    source = sources_of(
        """
        [webhooks.stripe]
        scheme = "stripe"
        secrets = ["env:STRIPE_WEBHOOK_SECRET"]
        [[webhooks.stripe.handlers]]
        name = "shop"
        events = ["checkout.*"]
        url = "http://127.0.0.1:3000/hooks"
        [[webhooks.stripe.handlers]]
        name = "ledger"
        sql = "public.on_stripe_event"
        [[webhooks.stripe.handlers]]
        name = "mailer"
        python = "shop.hooks:on_stripe"
        """,
        {"STRIPE_WEBHOOK_SECRET": "whsec_a,whsec_b"},
    )["stripe"]
    assert source.scheme.name == "stripe"
    assert source.secrets == ("whsec_a", "whsec_b")
    assert source.handlers == (
        Handler("shop", ("checkout.*",), url="http://127.0.0.1:3000/hooks"),
        Handler("ledger", sql="public.on_stripe_event"),
        Handler("mailer", python="shop.hooks:on_stripe"),
    )
    assert source.body_bytes_max == BODY_BYTES_MAX


def test_everything_that_a_source_may_say() -> None:
    """Places, limits, lanes, and the address' own signature."""
    source = sources_of(
        f"""
        [webhooks.acme]
        scheme = "HMAC"
        header = "X-Acme"
        algorithm = "sha512"
        encoding = "base64"
        prefix = "v1:"
        secrets = ["one, with a comma"]
        event_id = ["header:X-Id", "data.id"]
        event_type = "kind"
        body_limit = "512KiB"
        lane = "data.object.id"
        lane_order = "created"
        lane_dead_letter = "pass"
        [[webhooks.acme.handlers]]
        name = "far"
        url = "https://example.com/hooks?x=1"
        secret = "{STANDARD_SECRET}"
        allow_private = true
        """
    )["acme"]
    assert (source.scheme.name, source.scheme.signature_headers) == ("hmac", ("X-Acme",))
    assert source.secrets == ("one, with a comma",)
    assert source.event_id == (Header("X-Id"), Body("data.id"))
    assert source.event_type == (Body("kind"),)
    assert source.body_bytes_max == 512 * 1024
    assert source.lane == Lane(Body("data.object.id"), Body("created"), "pass")
    assert source.handlers[0].secret == STANDARD_SECRET
    assert source.handlers[0].allow_private


def test_a_source_may_say_that_its_events_have_no_id() -> None:
    """None of them is then taken for a duplicate."""
    one = sample("stripe")
    source = sources_of(f'[webhooks.stripe]\nsecrets = "{one.verifies}"\nevent_id = []')["stripe"]
    assert source.verify(one.request(), AT_S).event_id is None


@pytest.mark.parametrize("name", ["github", "standard_webhooks", "svix"])
def test_a_source_with_a_schemes_name_has_that_scheme(name: str) -> None:
    """Nobody has to say it twice."""
    assert sources_of(f'[webhooks.{name}]\nsecrets = ["whsec_AAAA"]')[name].scheme.name == name.replace(
        "_", "-"
    )


@pytest.mark.parametrize("variable", ["POSTROOM_STRIPE_WEBHOOK_SECRET", "STRIPE_WEBHOOK_SECRET"])
def test_a_variable_alone_makes_the_source_stripe(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several secrets during a rotation."""
    monkeypatch.setenv(variable, "whsec_a, whsec_b")
    source = read_sources(load_settings())["stripe"]
    assert (source.scheme.name, source.secrets) == ("stripe", ("whsec_a", "whsec_b"))


def test_postrooms_variable_wins_over_the_table_and_stripes_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins; a variable that others have named counts where nothing else says anything."""
    toml = '[webhooks.stripe]\nscheme = "stripe"\nsecrets = ["whsec_table"]'
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_fallback")
    assert sources_of(toml)["stripe"].secrets == ("whsec_table",)
    assert sources_of('[webhooks.stripe]\nscheme = "stripe"')["stripe"].secrets == ("whsec_fallback",)
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_ours")
    environ = {"POSTROOM_STRIPE_WEBHOOK_SECRET": "whsec_ours"}
    assert sources_of(toml, environ)["stripe"].secrets == ("whsec_ours",)


def test_the_variable_changes_no_source_that_only_has_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table stripe with another scheme keeps its own secrets."""
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_ours")
    environ = {"POSTROOM_STRIPE_WEBHOOK_SECRET": "whsec_ours"}
    toml = '[webhooks.stripe]\nscheme = "github"\nsecrets = ["own"]'
    assert sources_of(toml, environ)["stripe"].secrets == ("own",)


@pytest.mark.parametrize("value", [",", " , "])
def test_a_variable_without_a_secret_is_a_mistake(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that nobody can call would be a riddle."""
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", value)
    with pytest.raises(ConfigError, match="POSTROOM_STRIPE_WEBHOOK_SECRET: it holds no secret"):
        read_sources(load_settings())


@pytest.mark.parametrize("scheme", ["twilio", "square", "hubspot"])
def test_a_source_that_signs_the_address_does_not_start_without_it(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such signature could ever hold."""
    toml = f'[webhooks.acme]\nscheme = "{scheme}"\nsecrets = ["s3cret-word"]'
    assert "POSTROOM_PUBLIC_URL" in mistake_in(toml)
    monkeypatch.setenv("POSTROOM_PUBLIC_URL", "https://hooks.example.com")
    assert sources_of(toml)["acme"].scheme.name == scheme


def test_none_has_to_be_written_out() -> None:
    """A source without a scheme is a mistake, whatever its name."""
    assert "say how it signs" in mistake_in("[webhooks.none]")
    assert "say how it signs" in mistake_in("[webhooks.acme]")
    assert "takes none" in mistake_in('[webhooks.acme]\nscheme = "none"\nsecrets = ["a"]')
    assert sources_of('[webhooks.acme]\nscheme = "none"')["acme"].secrets == ()


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('[webhooks."Big Name"]\nscheme = "none"', "webhooks.Big Name: a source is named by a-z"),
        ('[webhooks.a]\nscheme = "strip"', "webhooks.a.scheme: 'strip' is no scheme; did you mean stripe?"),
        ("[webhooks.a]\nscheme = 7", "webhooks.a.scheme: it must be a text"),
        (acme('secret = "x"'), "webhooks.acme.secret: it is no setting; did you mean secrets?"),
        (acme('prefix = "x"'), "webhooks.acme.prefix: it is no setting"),
        (acme('verify_token = "x"'), "webhooks.acme.verify_token: it is no setting"),
        ('[webhooks.a]\nscheme = "github"', "webhooks.a.secrets: scheme github needs at least one"),
        ("[webhooks.github]\nsecrets = []", "webhooks.github.secrets: the list is empty"),
        ('[webhooks.github]\nsecrets = [""]', "webhooks.github.secrets[0]: it is empty"),
        ('[webhooks.stripe]\nsecrets = ["whsec_a,"]', "webhooks.stripe.secrets[1]: it is empty"),
        ('[webhooks.github]\nsecrets = ["a", " b"]', "webhooks.github.secrets[1]: there is whitespace"),
        ("[webhooks.github]\nsecrets = ['\"a\"']", "webhooks.github.secrets[0]: there are quotes"),
        ("[webhooks.github]\nsecrets = [7]", "webhooks.github.secrets: it must be a text, or a list"),
        ('[webhooks.github]\nsecrets = "env:NOPE"', "webhooks.github.secrets: the variable NOPE is not set"),
        ('[webhooks.stripe]\nsecrets = ["sk_live_x"]', "webhooks.stripe.secrets[0]: it is an API key"),
        (
            '[webhooks.svix]\nsecrets = ["whsec_!"]',
            "webhooks.svix.secrets[0]: after its prefix it is no base64",
        ),
        ('[webhooks.a]\nscheme = "hmac"\nsecrets = ["x"]', "webhooks.a.header: scheme hmac needs the name"),
        (
            '[webhooks.a]\nscheme = "hmac"\nheader = "a b"\nsecrets = ["x"]',
            "webhooks.a.header: it is no name of a header",
        ),
        (
            '[webhooks.a]\nscheme = "hmac"\nheader = "a"\nsecrets = ["x"]\nalgorithm = "md5"',
            "webhooks.a.algorithm: allowed is sha1, sha256, sha384, sha512",
        ),
        ('[webhooks.meta]\nsecrets = ["x"]\nverify_token = ""', "webhooks.meta.verify_token: it must be"),
        (acme('event_id = "a b"'), "webhooks.acme.event_id: allowed is header:NAME"),
        (acme("event_id = 7"), "webhooks.acme.event_id: it must be a text, or a list of texts"),
        (acme("body_limit = 0"), "webhooks.acme.body_limit: allowed is"),
        (acme('body_limit = "11MiB"'), "webhooks.acme.body_limit: allowed is"),
        (acme('body_limit = "big"'), "webhooks.acme.body_limit: allowed is"),
        (acme("body_limit = true"), "webhooks.acme.body_limit: allowed is"),
        (acme('lane = ""'), "webhooks.acme.lane: allowed is header:NAME"),
        (acme('lane_order = "created"'), "webhooks.acme.lane_order: there is no lane"),
        (
            acme('lane = "id"\nlane_dead_letter = "x"'),
            "webhooks.acme.lane_dead_letter: allowed is hold, pass",
        ),
        (acme('handlers = "x"'), "webhooks.acme.handlers: write each as a table [[webhooks.acme.handlers]]"),
        (handler('url = "http://a"'), "webhooks.acme.handlers[0].name: a handler needs one"),
        (handler('name = "a b"\nurl = "http://a"'), "webhooks.acme.handlers[0].name: allowed is letters"),
        (
            handler('name = "a"'),
            "webhooks.acme.handlers[0]: handler 'a' needs exactly one of url, sql and python",
        ),
        (
            handler('name = "a"\nurl = "http://a"\nsql = "b"'),
            "webhooks.acme.handlers[0]: handler 'a' needs exactly one of url, sql and python; there are",
        ),
        (handler('name = "a"\nuri = "http://a"'), "webhooks.acme.handlers[0].uri: it is no setting; did you"),
        (
            handler('name = "a"\nsql = "a; DROP TABLE b"'),
            "webhooks.acme.handlers[0].sql: allowed is a function",
        ),
        (
            handler('name = "a"\npython = "shop.hooks"'),
            "webhooks.acme.handlers[0].python: allowed is module:",
        ),
        (handler('name = "a"\nurl = "ftp://a"'), "webhooks.acme.handlers[0].url: allowed is an address"),
        (handler('name = "a"\nurl = "http://"'), "webhooks.acme.handlers[0].url: allowed is an address"),
        (
            handler('name = "a"\nurl = "http://a:99999"'),
            "webhooks.acme.handlers[0].url: allowed is an address",
        ),
        (
            handler('name = "a"\nurl = "http://u:p@a/"'),
            "webhooks.acme.handlers[0].url: allowed is an address",
        ),
        (handler('name = "a"\nurl = "http://a/ b"'), "webhooks.acme.handlers[0].url: allowed is an address"),
        (
            handler('name = "a"\nurl = "http://a"\nallow_private = "yes"'),
            "webhooks.acme.handlers[0].allow_private: it must be true or false",
        ),
        (
            handler('name = "a"\nsql = "b"\nallow_private = true'),
            "webhooks.acme.handlers[0].allow_private: it belongs to a url",
        ),
        (
            handler('name = "a"\nurl = "http://a"\nsecret = "s3cret!"'),
            "webhooks.acme.handlers[0].secret: after its prefix it is no base64",
        ),
        (
            handler('name = "a"\nurl = "http://a"\nevents = []'),
            "webhooks.acme.handlers[0].events: it must be",
        ),
        (
            handler('name = "a"\nsql = "b"\n[[webhooks.acme.handlers]]\nname = "a"\nsql = "c"'),
            "webhooks.acme.handlers[1].name: there are two handlers named 'a'",
        ),
    ],
)
def test_a_mistake_names_its_field_and_shows_no_secret(toml: str, line: str) -> None:
    """One line: where it is, and what is allowed."""
    found = mistake_in(toml)
    assert found.startswith(line)
    assert "s3cret" not in found


def test_no_repr_of_a_source_shows_a_secret() -> None:
    """Neither its own, nor a handler's, nor the token that confirms its address."""
    source = Source(
        "meta",
        sample("meta").scheme,
        ("s3cret",),
        verify_token="s3cret",
        handlers=(Handler("a", url="https://a.example/?key=s3cret", secret="s3cret"),),
    )
    assert "s3cret" not in repr(source)


@pytest.mark.parametrize(
    ("patterns", "event_type", "wanted"),
    [
        (("*",), None, True),
        (("*",), "a", True),
        (("checkout.*",), "checkout.session.completed", True),
        (("checkout.*",), "checkout", False),
        (("checkout.*",), None, False),
        (("a.b", "c"), "c", True),
        (("a.b",), "aXb", False),
        (("*.paid",), "order.paid", True),
        (("*.paid",), "order.paid.late", False),
        (("a*c[1]",), "abc[1]", True),
    ],
)
def test_a_handler_wants_the_events_that_its_patterns_name(
    patterns: tuple[str, ...], event_type: str | None, wanted: bool
) -> None:
    """A star stands for any characters, dots too; nothing else is special."""
    source = Source("a", sample("stripe").scheme, handlers=(Handler("h", patterns, sql="f"),))
    assert bool(source.handlers_for(event_type)) == wanted


def test_the_place_that_the_source_names_wins_over_the_schemes() -> None:
    """For events that a provider's document describes in another way."""
    one = sample("github")
    toml = f'[webhooks.github]\nsecrets = ["{one.verifies}"]\nevent_id = "deep.id"\nevent_type = "header:x-k"'
    source = sources_of(toml)["github"]
    request = one.request(b'{"deep": {"id": 9}}').with_header("X-K", "kind")
    verified = source.verify(WebhookRequest("POST", "", Headers(request.headers), request.body), AT_S)
    assert (verified.event_id, verified.event_type) == ("9", "kind")
