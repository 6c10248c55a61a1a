"""The options of an SMTP address."""

from __future__ import annotations

import pytest

from postroom.email.transports import from_urls
from postroom.errors import ConfigError
from postroom.settings import Settings
from tests.email.conftest import NewEmail
from tests.email.transports.servers.scripted_smtp import ScriptedSmtp


async def started() -> None:
    """A start that is granted at once."""


@pytest.mark.parametrize(
    ("options", "verb"), [("", "BDAT"), ("?chunking=yes", "BDAT"), ("?chunking=no", "DATA")]
)
async def test_chunking(smtp: ScriptedSmtp, new_email: NewEmail, options: str, verb: str) -> None:
    """Taken where it is offered, unless the address says no."""
    smtp.extensions = ["PIPELINING", "CHUNKING"]
    transport = from_urls([f"smtp://127.0.0.1:{smtp.port}{options}"], Settings())
    await transport.send(new_email(), started)
    await transport.close()
    assert verb in smtp.commands


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("chunking=perhaps", "wrong chunking; allowed are yes, no"),
        ("connections=0", "wrong connections; allowed are 1 to 1,000"),
        ("connections=x", "wrong connections; allowed are 1 to 1,000"),
        ("pipelining=no", "not known; allowed are starttls, verify, ca, helo, connections, chunking"),
    ],
)
def test_wrong_option_says_what_is_allowed(options: str, says: str) -> None:
    """One line that names the option and what it may be."""
    with pytest.raises(ConfigError, match=says):
        from_urls([f"smtp://127.0.0.1:25?{options}"], Settings())


def test_the_port_of_smtps_needs_its_scheme_or_a_word() -> None:
    """By smtp:// nobody would say anything there for five minutes."""
    with pytest.raises(ConfigError, match="port 465, where a server begins with TLS; write smtps://"):
        from_urls(["smtp://user:secret@127.0.0.1:465"], Settings())
    from_urls(["smtps://user:secret@127.0.0.1:465"], Settings())
    from_urls(["smtp://user:secret@127.0.0.1:465?starttls=required"], Settings())
