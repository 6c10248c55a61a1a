"""manage.py check: what is wrong with a project's settings is said by name, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks
from django.test.utils import override_settings

from postroom.errors import ConfigError
from postroom.settings import load_settings
from tests.django import project

STRIPE = {"WEBHOOKS": {"stripe": {"secrets": ["whsec_x"]}}}


def said(**options: Any) -> list[tuple[str, str]]:
    return [
        (message.id, message.msg)
        for message in run_checks(**options)
        if str(message.id).startswith("postroom")
    ]


def test_a_good_project_hears_nothing() -> None:
    """The tests' own project: a source, its handler, a migrated database."""
    assert said(databases=["default"]) == []


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (
            {"DATABASE": "mail"},
            "postroom.E001",
            "POSTROOM[\"DATABASE\"] names 'mail', which is not in DATABASES",
        ),
        (["TRANSPORT"], "postroom.E001", "POSTROOM must be a dictionary"),
        (
            {"TRANPORT": "smtp://a"},
            "postroom.E003",
            "POSTROOM: tranport is no setting; did you mean transport?",
        ),
        ({"PORT": "x"}, "postroom.E003", 'POSTROOM["PORT"] is wrong; allowed is a number from 0 to 65535'),
        ({"smtp": {"rcpt_timeout": "x"}}, "postroom.E003", 'POSTROOM["smtp"]["rcpt_timeout"] is wrong'),
        ({"SMTP_RCPT_TIMEOUT": "x"}, "postroom.E003", 'POSTROOM["SMTP_RCPT_TIMEOUT"] is wrong'),
        (
            {"WEBHOOKS": {"stripe": {}}},
            "postroom.E003",
            'POSTROOM["WEBHOOKS"].stripe.secrets: scheme stripe needs at least one',
        ),
        (
            {"WEBHOOKS": {"stripe": {"secrets": ["env:NOT_SET_HERE"]}}},
            "postroom.W004",
            'POSTROOM["WEBHOOKS"].stripe.secrets: the variable NOT_SET_HERE is not set',
        ),
        (
            {**STRIPE, "WEBHOOKS": {**STRIPE["WEBHOOKS"], "github": {"secrets": ["x" * 20]}}},
            "postroom.W001",
            "github",
        ),
        ({}, "postroom.W002", "there are handlers for webhooks of stripe, and no such source"),
    ],
)
def test_what_is_wrong_is_named(given: Any, code: str, text: str) -> None:
    """An error names the key of POSTROOM as it was written."""
    with override_settings(POSTROOM=given):
        ((found, message),) = said()
    assert found == code
    assert text in message


def test_a_database_that_is_not_migrated_is_a_warning(empty_database_url: str) -> None:
    """migrate looks at the same checks first, and must go on."""
    with project.database(empty_database_url):
        ((code, text),) = said(databases=["default"])
    assert (code, text) == ("postroom.W010", "DATABASES['default'] is not up to date for postroom")


def test_deployed_without_a_transport_is_a_warning() -> None:
    """`check --deploy`: mail in a folder is for development."""
    assert [code for code, _ in said(include_deployment_checks=True)] == ["postroom.W020"]
    with override_settings(EMAIL_HOST="smtp.example.com"):
        assert said(include_deployment_checks=True) == []


def test_djangos_own_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """EMAIL_HOST and its like are the transport; POSTROOM wins over them, and the environment over both."""
    smtp = {
        "EMAIL_HOST": "smtp.example.com",
        "EMAIL_PORT": 587,
        "EMAIL_HOST_USER": "shop@example.com",
        "EMAIL_HOST_PASSWORD": "p@ss/word",
        "EMAIL_USE_TLS": True,
    }
    with override_settings(**smtp):
        found = load_settings()
        assert found.transport == (
            "smtp://shop%40example.com:p%40ss%2Fword@smtp.example.com:587?starttls=required"
        )
        assert found.sender == "Shop <shop@example.com>"
        assert "p%40ss" not in repr(found)
        with override_settings(POSTROOM={"TRANSPORT": ("smtp://a", "smtp://b"), "FROM": "b@example.com"}):
            assert load_settings().transport_urls == ("smtp://a", "smtp://b")
            assert load_settings().sender == "b@example.com"
            monkeypatch.setenv("POSTROOM_TRANSPORT", "smtp://c")
            assert load_settings().transport_urls == ("smtp://c",)
    with override_settings(EMAIL_HOST="smtp.example.com", EMAIL_PORT=465, EMAIL_USE_SSL=True):
        monkeypatch.delenv("POSTROOM_TRANSPORT")
        assert load_settings().transport == "smtps://smtp.example.com:465"


def mailer(backend: str = "postroom.django.EmailBackend", **options: Any) -> dict[str, Any]:
    return {"BACKEND": backend, "OPTIONS": options}


def test_the_server_of_the_mailer_that_queues_is_the_transport() -> None:
    """With MAILERS (Django 6.1) postroom's mailer says in its OPTIONS where mail leaves; others do not."""
    other = mailer("django.core.mail.backends.smtp.EmailBackend", host="elsewhere.example.com")
    named: dict[str, Any] = {
        "host": "smtp.example.com",
        "username": "ada",
        "password": "p@ss",
        "use_tls": True,
    }
    with override_settings(MAILERS={"alarm": other, "default": mailer(**named)}):
        assert load_settings().transport == "smtp://ada:p%40ss@smtp.example.com:587?starttls=required"
    with override_settings(MAILERS={"default": mailer(host="smtp.example.com", use_ssl=True)}):
        assert load_settings().transport == "smtps://smtp.example.com:465"
        assert said(include_deployment_checks=True) == []
    with override_settings(MAILERS={"default": mailer(), "alarm": other}):
        (found,) = [one for one in run_checks(include_deployment_checks=True) if one.id == "postroom.W020"]
        assert "in the OPTIONS of the mailer in MAILERS" in str(found.hint)


def test_two_mailers_that_queue_for_different_servers_are_refused() -> None:
    """There is one queue: mail of both would leave by one of them, so that is said instead."""
    mailers = {"default": mailer(host="a.example.com"), "news": mailer(host="b.example.com")}
    with override_settings(MAILERS=mailers):
        ((code, text),) = said()
        assert code == "postroom.E003"
        assert text.startswith('MAILERS["default"]["OPTIONS"] and MAILERS["news"]["OPTIONS"] name different')
    with override_settings(MAILERS={**mailers, "news": mailer(host="a.example.com", timeout=3)}):
        assert load_settings().transport == "smtp://a.example.com:25"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"NAME": "shop"}, "postgresql:///shop"),
        (
            {"NAME": "shop", "USER": "a b", "PASSWORD": "p@:/?", "HOST": "db.example", "PORT": 6432},
            "postgresql://a%20b:p%40%3A%2F%3F@db.example:6432/shop",
        ),
        ({"NAME": "shop", "HOST": "::1", "USER": "ada"}, "postgresql://ada@[::1]/shop"),
        (
            {"NAME": "shop", "HOST": "/run/pg", "PORT": "5433"},
            "postgresql:///shop?host=%2Frun%2Fpg&port=5433",
        ),
        (
            {
                "NAME": "shop",
                "HOST": "db",
                "OPTIONS": {"sslmode": "require", "pool": True, "isolation_level": 2},
            },
            "postgresql://db/shop?sslmode=require",
        ),
    ],
)
def test_an_entry_of_databases_is_an_address(given: dict[str, Any], address: str) -> None:
    """Whatever an entry of DATABASES says of where the server is, the house finds it there."""
    from django.db import connections

    from postroom.django.conf import database_url

    connections.settings["other"] = {
        **connections.settings["default"],
        "USER": "",
        "PASSWORD": "",
        "HOST": "",
        "PORT": "",
        "OPTIONS": {},
        **given,
    }
    try:
        assert database_url("other") == address
    finally:
        del connections.settings["other"]
        del connections["other"]


def test_an_entry_without_a_name_is_refused() -> None:
    """What Django says of it is said by us."""
    with override_settings(POSTROOM={"DATABASE": 17}), pytest.raises(ConfigError, match="names 17"):
        load_settings()
