"""Who is logged in: a cookie, signed with the key that was shown; a key that is revoked ends its sessions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

COOKIE = "postroom_session"

IDLE_S = 3600
"""A session that nobody used for so long is over."""

WHOLE_S = 12 * 3600
"""And so is one that began so long ago."""

RENEWED_AFTER_S = 60
"""The end of a session moves on when it was used, but not with every request."""

COOKIE_CHARACTERS_MAX = 1_000

_PURPOSE = b"postroom dashboard session"


@dataclass(frozen=True, slots=True)
class Session:
    """
    A person who is logged in.

    Attributes:
        key_id: The beginning of the hash of the key that was shown: for the audit trail.
        nonce: Drawn at the login.
        began_at, used_at: Unix times.
        csrf_token: What every form that changes something must bring.
    """

    key_id: str
    nonce: str
    began_at: int
    used_at: int
    csrf_token: str

    @property
    def ends_at(self) -> int:
        """The Unix time at which it is over, unless it is used."""
        return min(self.used_at + IDLE_S, self.began_at + WHOLE_S)


def begin(key_hash: bytes, now: int) -> Session:
    """A session of whoever has shown the key with this SHA-256."""
    nonce = secrets.token_urlsafe(16)
    return Session(_key_id(key_hash), nonce, now, now, _csrf_token(key_hash, nonce))


def renew(session: Session, now: int) -> Session:
    """The same session, used at `now`."""
    return Session(session.key_id, session.nonce, session.began_at, now, session.csrf_token)


def write(session: Session, key_hash: bytes) -> str:
    """The cookie's value."""
    facts = orjson.dumps([session.key_id, session.nonce, session.began_at, session.used_at])
    return f"{_base64(facts)}.{_base64(_mac(key_hash, facts))}"


def read(cookie: str, key_hashes: Iterable[bytes], now: int) -> tuple[Session, bytes] | None:
    """
    The session of a cookie and the hash of its key; None where it is forged, over, or its key is gone.

    Args:
        key_hashes: Of all keys that are good at present.
    """
    written, _, signature = cookie[:COOKIE_CHARACTERS_MAX].partition(".")
    try:
        facts, shown = _bytes(written), _bytes(signature)
    except (binascii.Error, ValueError):
        return None
    for key_hash in key_hashes:
        if hmac.compare_digest(_mac(key_hash, facts), shown):
            key_id, nonce, began_at, used_at = orjson.loads(facts)
            session = Session(key_id, nonce, began_at, used_at, _csrf_token(key_hash, nonce))
            return (session, key_hash) if now < session.ends_at else None
    return None


def _key_id(key_hash: bytes) -> str:
    return key_hash.hex()[:8]


def _csrf_token(key_hash: bytes, nonce: str) -> str:
    return _base64(_mac(key_hash, b"csrf " + nonce.encode()))


def _mac(key_hash: bytes, message: bytes) -> bytes:
    own_key = hmac.digest(key_hash, _PURPOSE, hashlib.sha256)
    return hmac.digest(own_key, message, hashlib.sha256)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
