"""
Supabase's JWTs: HS256 by a shared secret, ES256 and RS256 by a set of public keys.

Which key a token is held against follows from its algorithm, and an algorithm without a key of its
own kind is refused: no token is checked with `none`, nor with a public key as if it were a secret.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import aiohttp
import jwt
import orjson

from postroom import log
from postroom.errors import PostroomError

TOKEN_BYTES_MAX = 16 * 1024
LEEWAY_S = 30.0
"""How far the clocks of who signs and of us may be apart."""

KEYS_GOOD_S = 600.0
KEYS_AGAIN_S = 10.0
"""The keys are fetched anew for a token with an unknown key, but no more often than this."""

FETCH_S = 5.0
KEYS_BYTES_MAX = 256 * 1024
KEYS_MAX = 100

_PUBLIC = ("ES256", "RS256")

_log = log.get_logger()


class InvalidToken(Exception):
    """The token is no valid JWT of ours; the text says why and holds nothing of it."""


class KeysNotFetched(PostroomError):
    """The public keys cannot be had, so nothing can be said about the token."""


class Jwts:
    """
    Verifies JWTs.

    Args:
        secret: POSTROOM_JWT_SECRET.
        keys_url: POSTROOM_JWKS_URL.
    """

    def __init__(self, secret: str | None, keys_url: str | None) -> None:
        self._secret = secret
        self._keys = KeySet(keys_url) if keys_url is not None else None

    async def role(self, token: str) -> str | None:
        """
        The role that a valid token claims.

        Raises:
            InvalidToken: Its signature, its time or its form is wrong.
            KeysNotFetched: The set of public keys cannot be had.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise InvalidToken("it is too long")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError):  # a header of thousands of brackets
            raise InvalidToken("it is no JWT") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm == "HS256" and self._secret is not None:
            return _role(token, self._secret, "HS256")
        if algorithm in _PUBLIC and self._keys is not None:
            return _role(token, await self._keys.find(algorithm, kid), algorithm)
        needs = {"HS256": "POSTROOM_JWT_SECRET", **dict.fromkeys(_PUBLIC, "POSTROOM_JWKS_URL")}
        if isinstance(algorithm, str) and algorithm in needs:
            raise InvalidToken(f"{algorithm} is taken where {needs[algorithm]} is set")
        raise InvalidToken("its algorithm is not accepted here")


class KeySet:
    """The public keys behind an address, fetched when they are needed and kept for ten minutes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at = -KEYS_GOOD_S
        self._tried_at = -KEYS_AGAIN_S
        self._fetching = asyncio.Lock()

    async def find(self, algorithm: str, kid: object) -> jwt.PyJWK:
        """
        The key of this name; where the token names none, the only one of its algorithm.

        Raises:
            InvalidToken: There is no such key.
            KeysNotFetched: There are no keys, since nobody answers.
        """
        found = self._among_known(algorithm, kid)
        if found is None or monotonic() - self._fetched_at > KEYS_GOOD_S:
            async with self._fetching:
                if monotonic() - self._tried_at > KEYS_AGAIN_S:
                    await self._fetch()
            found = self._among_known(algorithm, kid)
        if found is not None:
            return found
        if not self._keys:
            raise KeysNotFetched("the keys of POSTROOM_JWKS_URL cannot be had now; try again")
        raise InvalidToken("its key is not known")

    def _among_known(self, algorithm: str, kid: object) -> jwt.PyJWK | None:
        keys = [key for key in self._keys if key.algorithm_name == algorithm]
        if kid is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.key_id == kid), None)

    async def _fetch(self) -> None:
        self._tried_at = monotonic()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_S)) as session,
                session.get(self._url, allow_redirects=False) as response,
            ):
                body = await response.content.read(KEYS_BYTES_MAX)
                while not response.content.at_eof() and len(body) < KEYS_BYTES_MAX:
                    body += await response.content.read(KEYS_BYTES_MAX - len(body))
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}")
            keys = _keys_in(orjson.loads(body))
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            # Old keys stay good while nobody answers: a token is no less signed for that.
            _log.warning("jwks.not_fetched", error=f"{type(error).__name__}: {error}"[:200])
            return
        self._keys = keys
        self._fetched_at = monotonic()


def _keys_in(found: Any) -> list[jwt.PyJWK]:
    """The keys that can check a signature; others, such as symmetric ones, have no place in a public set."""
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("no set of keys")
    keys = []
    for entry in found["keys"][:KEYS_MAX]:
        if not isinstance(entry, dict) or entry.get("kty") not in ("EC", "RSA"):
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError:
            continue
        if key.algorithm_name in _PUBLIC:
            keys.append(key)
    return keys


def _role(token: str, key: str | jwt.PyJWK, algorithm: str) -> str | None:
    try:
        # The audience is Supabase's own word for "a user"; keys of projects have none.
        claims = jwt.decode(
            token, key, algorithms=[algorithm], options={"verify_aud": False}, leeway=LEEWAY_S
        )
    except jwt.ExpiredSignatureError:
        raise InvalidToken("it has expired") from None
    except jwt.ImmatureSignatureError:
        raise InvalidToken("it is not valid yet") from None
    except jwt.InvalidSignatureError:
        raise InvalidToken("its signature is wrong") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidToken("it is no valid JWT") from None
    role = claims.get("role")
    return role if isinstance(role, str) else None
