"""Supabase's keys and tokens, as its dashboard and its Auth issue them: who may call postroom's doors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from postroom import Room
from postroom.http import jwt as jwts
from postroom.supabase.functions import export_functions
from tests.http.conftest import MAIL, SEND, Served, serving, settings_of
from tests.http.test_auth import KeyServer, _jwk, key_server
from tests.supabase.conftest import Edge
from tests.supabase.test_functions import invoke
from tests.support.node import Driver, NodeTools

__all__ = ["key_server"]

REF = "abcdefghijklmnopqrst"
LEGACY_SECRET = "x5Qq0y0WcJ2m8VfM0i9Jt3qJw1o4m7h9r2k5u8x1A4D7G0J3M6P9S2V5Y8b1e4h7k0n3q6t9w2z5="
SECRET_KEY = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
PUBLISHABLE_KEY = "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH"
SIGNING_KEY = ec.generate_private_key(ec.SECP256R1())
NEXT_KEY = ec.generate_private_key(ec.SECP256R1())


def legacy_key(role: str) -> str:
    """The anon or service_role key of a project: HS256, good for ten years."""
    issued = int(time.time()) - 86_400 * 200
    claims = {"iss": "supabase", "ref": REF, "role": role, "iat": issued, "exp": issued + 315_360_000}
    return jwt.encode(claims, LEGACY_SECRET, algorithm="HS256")


def user_claims(role: str = "authenticated", *, at: float | None = None, **more: Any) -> dict[str, Any]:
    """What Supabase Auth says of a signed-in user; the token is good for an hour."""
    issued = int(time.time() if at is None else at)
    return {
        "iss": f"https://{REF}.supabase.co/auth/v1",
        "sub": str(uuid4()),
        "aud": "authenticated",
        "exp": issued + 3600,
        "iat": issued,
        "email": "ada@example.com",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"email_verified": True},
        "role": role,
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": issued}],
        "session_id": str(uuid4()),
        "is_anonymous": False,
    } | more


def by_auth(claims: dict[str, Any], kid: str = "current", key: Any = SIGNING_KEY) -> str:
    """Signed by the project's own key: ES256."""
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})


@pytest.fixture
async def project(
    database_url: str, tmp_path: Path, key_server: KeyServer
) -> AsyncIterator[tuple[Served, KeyServer]]:
    """A house that knows a project's secret key, legacy secret and key set."""
    key_server.keys = [
        _jwk(SIGNING_KEY, kid="current", alg="ES256", use="sig", key_ops=["verify"], ext=True),
        _jwk(NEXT_KEY, kid="standby", alg="ES256", use="sig", key_ops=["verify"], ext=True),
    ]
    settings = settings_of(
        database_url, tmp_path, service_key=SECRET_KEY, jwt_secret=LEGACY_SECRET, jwks_url=key_server.url
    )
    async with Room(**settings) as room, serving(room, key=None) as served:
        yield served, key_server


async def ask(served: Served, **headers: str) -> tuple[int, str]:
    """Status and error of a door that wants the service's key."""
    answer = await served.client.post(SEND, json=MAIL | {"use_queue": True}, headers=headers)
    return answer.status_code, answer.json().get("error", "")


async def test_secret_keys_and_both_kinds_of_tokens_of_the_service_open(
    project: tuple[Served, KeyServer],
) -> None:
    """In Authorization, in apikey alone, or in both as supabase-js sends them; by the standby key too."""
    served, _ = project
    by_service = user_claims("service_role")
    for key in (
        SECRET_KEY,
        legacy_key("service_role"),
        by_auth(by_service),
        by_auth(by_service, "standby", NEXT_KEY),
    ):
        assert await ask(served, authorization=f"Bearer {key}") == (200, "")
        assert await ask(served, apikey=key) == (200, "")
        assert await ask(served, authorization=f"Bearer {key}", apikey=PUBLISHABLE_KEY) == (200, "")


async def test_who_may_not_is_told_why(project: tuple[Served, KeyServer]) -> None:
    """A user and the anon key are 403, whatever apikey is beside them; what opens nothing is 401."""
    served, _ = project
    user, call = by_auth(user_claims()), "call with the service_role key or a secret key, from a server"
    for headers in (
        {"authorization": f"Bearer {user}"},
        {"authorization": f"Bearer {user}", "apikey": SECRET_KEY},
    ):
        status, error = await ask(served, **headers)
        assert status == 403
        assert error.startswith(f"this is the token of a signed-in user: {call}")
    status, error = await ask(served, apikey=legacy_key("anon"))
    assert (status, error.partition(":")[0]) == (403, "this is the anon key, which any browser has")
    status, error = await ask(served, authorization=f"Bearer {by_auth(user_claims('editor'))}")
    assert (status, error.partition(":")[0]) == (403, "the role of this JWT is not service_role")
    status, error = await ask(served, apikey=PUBLISHABLE_KEY)
    assert (status, error.partition(":")[0]) == (401, "a publishable key is for browsers")
    assert await ask(served, apikey=SECRET_KEY[:-1]) == (401, "the key is not valid")
    assert (await ask(served))[0] == 401
    assert (await ask(served, authorization="Basic x", apikey=SECRET_KEY))[0] == 401


async def test_clocks_may_be_half_a_minute_apart(project: tuple[Served, KeyServer]) -> None:
    """A token that ended 20 s ago, or was made in 20 s, is good; at a minute it is not."""
    served, _ = project
    now = time.time()
    for at, expected in (
        (now - 3600 - 20, (200, "")),
        (now + 20, (200, "")),
        (now - 3600 - 60, (401, "the JWT is not valid: it has expired")),
        (now + 60, (401, "the JWT is not valid: it is not valid yet")),
    ):
        token = by_auth(user_claims("service_role", at=at))
        assert await ask(served, authorization=f"Bearer {token}") == expected


async def test_a_rotated_key_opens_and_a_revoked_one_does_no_more(
    project: tuple[Served, KeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is fetched anew for a kid that is not known; while it is away, the known keys stay good."""
    monkeypatch.setattr(jwts, "KEYS_AGAIN_S", 0.0)
    served, server = project
    old, new = (by_auth(user_claims("service_role"), kid) for kid in ("current", "rotated"))
    assert await ask(served, authorization=f"Bearer {old}") == (200, "")
    assert await ask(served, authorization=f"Bearer {new}") == (
        401,
        "the JWT is not valid: its key is not known",
    )
    server.keys = [_jwk(SIGNING_KEY, kid="rotated", alg="ES256", use="sig")]
    assert await ask(served, authorization=f"Bearer {new}") == (200, "")
    assert (await ask(served, authorization=f"Bearer {old}"))[0] == 401
    server.status = 503
    assert await ask(served, authorization=f"Bearer {new}") == (200, "")


async def test_a_token_that_cannot_be_checked_here_says_which_setting_is_missing(
    database_url: str, tmp_path: Path, key_server: KeyServer
) -> None:
    """Who has set up one kind of key and calls with another."""
    kinds: dict[str, Any] = {"jwt_secret": LEGACY_SECRET, "jwks_url": key_server.url}
    es256, hs256 = by_auth(user_claims("service_role")), legacy_key("service_role")
    for setting, token, told in (
        ({}, hs256, "no JWT is taken here: set POSTROOM_JWT_SECRET or POSTROOM_JWKS_URL"),
        ({"jwt_secret"}, es256, "the JWT is not valid: ES256 is taken where POSTROOM_JWKS_URL is set"),
        ({"jwks_url"}, hs256, "the JWT is not valid: HS256 is taken where POSTROOM_JWT_SECRET is set"),
    ):
        given = {name: kinds[name] for name in setting}
        async with (
            Room(**settings_of(database_url, tmp_path, **given)) as room,
            serving(room, key=None) as served,
        ):
            assert await ask(served, authorization=f"Bearer {token}") == (401, told)


async def test_supabase_js_of_a_signed_in_user_is_told_why_he_may_not(
    project: tuple[Served, KeyServer], js: Driver, tools: NodeTools, tmp_path: Path
) -> None:
    """Through the function: a secret key opens; a client with a user's session has 403 and the sentence."""
    served, _ = project
    export_functions(tmp_path / "functions")
    edge = Edge(tools, tmp_path / "functions", served.url)
    with edge.serving("send-email"):
        done = await invoke(js, edge, "send-email", key=SECRET_KEY, body=MAIL | {"use_queue": True})
        assert done["data"]["queued"] is True
        refused = await invoke(
            js, edge, "send-email", key=PUBLISHABLE_KEY, user=by_auth(user_claims()), body=MAIL
        )
    assert refused["error"]["status"] == 403
    assert refused["error"]["body"]["error"].startswith("this is the token of a signed-in user: call with")
