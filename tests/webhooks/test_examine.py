"""What `postroom doctor` says of the sources and their handlers."""

from __future__ import annotations

from typing import Any

from postroom import Room
from postroom.finding import Finding
from postroom.settings import load_settings
from postroom.webhooks.examine import check_handlers, check_sources

STANDARD = {"scheme": "standard", "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}
STRIPE: dict[str, Any] = {"secrets": ["whsec_a", "whsec_b"]}


def found_in(**sources: Any) -> list[Finding]:
    """The findings of a postroom.toml."""
    return check_sources(load_settings(webhooks=sources))


def test_a_good_source_is_told_with_its_handlers() -> None:
    """Scheme, secrets, handlers; no secret itself."""
    (found,) = found_in(stripe={**STRIPE, "handlers": [{"name": "a", "sql": "f"}]})
    assert (found.level, found.found) == ("ok", "source stripe: scheme stripe, 2 secrets, handlers: a")


def test_a_mistake_in_the_settings_is_a_problem() -> None:
    """In the words that a program would end with."""
    (found,) = found_in(stripe={"secrets": ["env:NOT_SET"]})
    assert found.level == "problem"
    assert "webhooks.stripe.secrets: the variable NOT_SET is not set" in found.found


def test_a_source_that_anybody_may_use_is_a_warning() -> None:
    """Scheme none."""
    (found,) = found_in(open={"scheme": "none"})
    assert (found.level, "anybody" in found.found) == ("warning", True)


def test_a_url_that_gets_the_providers_signature_beside_our_id_is_a_warning() -> None:
    """Only where the provider signs by Standard Webhooks, and the handler has no secret of its own."""
    handler = {"name": "a", "url": "http://127.0.0.1:1/"}
    signed = {**handler, "secret": STANDARD["secrets"][0]}
    levels = [
        [found.level for found in found_in(**{name: {**source, "handlers": [one]}})]
        for name, source, one in (
            ("billing", STANDARD, handler),
            ("billing", STANDARD, signed),
            ("stripe", STRIPE, handler),
        )
    ]
    assert levels == [["ok", "warning"], ["ok"], ["ok"]]


async def test_a_function_that_is_not_there_is_a_problem(database_url: str) -> None:
    """Found by its name and two arguments, with a schema or by the search path."""
    handlers = [{"name": name, "sql": name} for name in ("public.on_a", "on_a", "public.on_b", "on_one")]
    sources = {"stripe": {**STRIPE, "handlers": handlers}}
    async with Room(database_url=database_url, webhooks=sources) as room:
        for arguments in ("on_a(payload jsonb, event_id text, more int DEFAULT 1)", "on_one(payload jsonb)"):
            await room.database.execute(f"CREATE FUNCTION public.{arguments} RETURNS void LANGUAGE sql AS ''")
        found = await check_handlers(room.database, room.sources)
    assert [one.level for one in found] == ["problem", "problem"]
    assert "there is no public.on_b(jsonb, text)" in found[0].found
    assert "there is no on_one(jsonb, text)" in found[1].found
