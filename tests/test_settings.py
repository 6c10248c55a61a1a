"""Process settings: where they come from, which wins, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from postroom.errors import ConfigError
from postroom.settings import load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> None:
    Path("postroom.toml").write_text(text)


def test_without_any_setting_everything_has_a_default(tmp_path: Path) -> None:
    """A fresh clone runs: embedded database, maildir, loopback."""
    settings = load_settings()
    assert settings.database_url is None
    assert settings.listen_url is None
    assert settings.data_dir == tmp_path / ".postroom"
    assert settings.transport_urls == (f"maildir:{tmp_path}/.postroom/mail",)
    assert (settings.host, settings.port) == ("127.0.0.1", 8400)
    assert settings.sender is None
    assert settings.log_format is None
    assert settings.log_level == "info"
    assert settings.concurrency == 40
    assert settings.stripe_webhook_secrets == ()
    assert settings.webhooks == {}
    assert settings.smtp.final_timeout_s == 600


def test_every_variable_of_the_contract_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment alone can say everything."""
    variables = {
        "DATABASE_URL": "postgresql://u:p@db/x",
        "LISTEN_URL": "postgres://u:p@direct/x",
        "DATA_DIR": "/srv/data",
        "TRANSPORT": "smtp://a:b@one:587 smtps://two:465",
        "FROM": "Shop <shop@example.com>",
        "SERVICE_KEY": "key",
        "JWT_SECRET": "jwt",
        "JWKS_URL": "https://x/jwks",
        "STRIPE_WEBHOOK_SECRET": "whsec_a, whsec_b",
        "STRIPE_API_KEY": "rk_a",
        "STRIPE_API_URL": "http://127.0.0.1:12111/",
        "PUBLIC_URL": "https://shop.example.com/",
        "HOST": "0.0.0.0",
        "PORT": "80",
        "LOG": "JSON",
        "LOG_LEVEL": "Debug",
        "CONCURRENCY": "7",
        "ATTEMPT_DEADLINE": "90s",
        "SMTP_RCPT_TIMEOUT": "2m",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"POSTROOM_{name}", value)
    settings = load_settings()
    assert settings.database_url == "postgresql://u:p@db/x"
    assert settings.listen_url == "postgres://u:p@direct/x"
    assert settings.data_dir == Path("/srv/data")
    assert settings.transport_urls == ("smtp://a:b@one:587", "smtps://two:465")
    assert settings.sender == "Shop <shop@example.com>"
    assert settings.service_key is not None
    assert settings.service_key.get_secret_value() == "key"
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == "jwt"
    assert settings.jwks_url == "https://x/jwks"
    assert [s.get_secret_value() for s in settings.stripe_webhook_secrets] == ["whsec_a", "whsec_b"]
    assert settings.stripe_api_key is not None
    assert settings.stripe_api_key.get_secret_value() == "rk_a"
    assert settings.stripe_api_url == "http://127.0.0.1:12111"
    assert settings.public_url == "https://shop.example.com"
    assert (settings.host, settings.port) == ("0.0.0.0", 80)
    assert (settings.log_format, settings.log_level) == ("json", "debug")
    assert (settings.concurrency, settings.attempt_deadline_s) == (7, 90)
    assert settings.smtp.rcpt_timeout_s == 120
    assert unknown_variables() == {}


def test_environment_wins_over_the_file_and_arguments_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, then the environment, then postroom.toml, key by key, in [smtp] too."""
    write(
        'port = 1\nhost = "file"\nfrom = "file@x.y"\ntransport = ["smtp://one", "smtp://two"]\n'
        '[smtp]\nrcpt_timeout = "1s"\nmail_timeout = "2s"\n'
    )
    monkeypatch.setenv("POSTROOM_PORT", "2")
    monkeypatch.setenv("POSTROOM_HOST", "environment")
    monkeypatch.setenv("POSTROOM_SMTP_RCPT_TIMEOUT", "9s")
    settings = load_settings(port=3, log_level=None)
    assert (settings.port, settings.host, settings.sender) == (3, "environment", "file@x.y")
    assert settings.transport_urls == ("smtp://one", "smtp://two")
    assert (settings.smtp.rcpt_timeout_s, settings.smtp.mail_timeout_s) == (9, 2)


def test_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`POSTROOM_PORT=` in a compose file changes nothing."""
    write("port = 1\n")
    monkeypatch.setenv("POSTROOM_PORT", "")
    assert load_settings().port == 1


def test_sources_of_webhooks_are_kept_as_they_are_written() -> None:
    """[webhooks.*] comes through whole."""
    write('[webhooks.stripe]\nscheme = "stripe"\n[[webhooks.stripe.handlers]]\nname = "shop"\n')
    assert load_settings().webhooks == {"stripe": {"scheme": "stripe", "handlers": [{"name": "shop"}]}}


def test_keys_that_others_have_named_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """RESEND_API_KEY makes Resend the transport, unless one is named; Stripe's are taken."""
    monkeypatch.setenv("RESEND_API_KEY", "re_1")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_1")
    monkeypatch.setenv("STRIPE_API_KEY", "sk_1")
    settings = load_settings()
    assert settings.stripe_api_key is not None
    assert settings.stripe_api_key.get_secret_value() == "sk_1"
    assert settings.transport_urls == ("resend://re_1",)
    assert [s.get_secret_value() for s in settings.stripe_webhook_secrets] == ["whsec_1"]
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_2")
    assert load_settings(transport="maildir:/x").transport_urls == ("maildir:/x",)
    assert [s.get_secret_value() for s in load_settings().stripe_webhook_secrets] == ["whsec_2"]


def test_file_is_where_postroom_config_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """POSTROOM_CONFIG names the file, and one that is not there is an error."""
    (tmp_path / "other.toml").write_text("port = 5\n")
    monkeypatch.setenv("POSTROOM_CONFIG", "other.toml")
    assert load_settings().port == 5
    monkeypatch.setenv("POSTROOM_CONFIG", "not-there.toml")
    with pytest.raises(ConfigError, match=r"POSTROOM_CONFIG names not-there\.toml"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("POSTROOM_PORT", "eighty", "a number from 0 to 65535"),
        ("POSTROOM_PORT", "70000", "a number from 0 to 65535"),
        ("POSTROOM_LOG", "xml", "json or text"),
        ("POSTROOM_LOG_LEVEL", "loud", "debug, info, warning or error"),
        ("POSTROOM_DATABASE_URL", "mysql://u:geheim@h/d", "postgresql://"),
        ("POSTROOM_LISTEN_URL", "geheim", "postgresql://"),
        ("POSTROOM_FROM", "a@b.c\r\nBcc: x@y.z", "an address"),
        ("POSTROOM_TRANSPORT", "smtp://geheim\x00", "smtp://"),
        ("POSTROOM_PUBLIC_URL", "shop.example.com", "begins with https://"),
        ("POSTROOM_CONCURRENCY", "0", "from 1 to 1000"),
        ("POSTROOM_ATTEMPT_DEADLINE", "10", "500ms, 3s, 5m, 2h or 30d"),
        ("POSTROOM_SMTP_RCPT_TIMEOUT", "soon", "500ms, 3s, 5m, 2h or 30d"),
    ],
)
def test_wrong_variable_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    """One line names the variable and what is allowed, and never shows the value."""
    if "\x00" in value:
        value = value.replace("\x00", "\x01")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    text = str(refused.value)
    assert text.startswith(variable)
    assert allowed in text
    assert "geheim" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("prot = 80\n", r"postroom\.toml: prot is no setting; did you mean port\?"),
        (
            '[smtp]\nrcpt_time = "1s"\n',
            r"postroom\.toml: smtp\.rcpt_time is no setting; did you mean rcpt_timeout",
        ),
        ("nonsense = 1\n", r"nonsense is no setting; there are alerts, attempt_deadline, concurrency"),
        ('port = "many"\n', r"postroom\.toml: port is wrong; allowed is a number"),
        (
            '[smtp]\nrcpt_timeout = "soon"\n',
            r"postroom\.toml: smtp\.rcpt_timeout is wrong; allowed is a whole",
        ),
        ("smtp = 5\n", r"postroom\.toml: smtp is wrong"),
        ("webhooks = 5\n", r"postroom\.toml: webhooks is wrong; allowed is tables"),
        ("port = \n", r"postroom\.toml is no TOML: .*line 1"),
    ],
)
def test_wrong_file_is_named_with_the_next_step(file: str, text: str) -> None:
    """A key that is unknown or wrong, or a file that is no TOML, is one line that helps."""
    write(file)
    with pytest.raises(ConfigError, match=text):
        load_settings()


def test_wrong_argument_is_named() -> None:
    """A program's own mistake is told apart from the environment's."""
    with pytest.raises(ConfigError, match="the argument port is wrong"):
        load_settings(port="x")
    with pytest.raises(ConfigError, match="databse_url is no setting; did you mean database_url"):
        load_settings(databse_url="x")


def test_no_secret_shows_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are printed or logged whole give nothing away."""
    monkeypatch.setenv("RESEND_API_KEY", "re_geheim")
    monkeypatch.setenv("POSTROOM_DATABASE_URL", "postgresql://u:geheim@h/d")
    monkeypatch.setenv("POSTROOM_LISTEN_URL", "postgresql://u:geheim@h/d")
    monkeypatch.setenv("POSTROOM_TRANSPORT", "smtp://u:geheim@h")
    monkeypatch.setenv("POSTROOM_SERVICE_KEY", "geheim")
    monkeypatch.setenv("POSTROOM_JWT_SECRET", "geheim")
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_geheim")
    write('[webhooks.x]\nsecrets = ["geheim"]\n')
    settings = load_settings()
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings)


def test_variable_that_is_no_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped variable is silent by nature; doctor can name it with the one that was meant."""
    monkeypatch.setenv("POSTROOM_TRANSPROT", "smtp://h")
    monkeypatch.setenv("POSTROOM_TEST_FAILPOINTS", "settle.before=kill")
    assert unknown_variables() == {"POSTROOM_TRANSPROT": "POSTROOM_TRANSPORT"}
