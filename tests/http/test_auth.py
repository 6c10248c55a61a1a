"""Who may call: service keys wherever they lie, and JWTs by secret and by key set."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from postroom import Room
from postroom.database.migrate import migrate
from postroom.errors import ConfigError, DatabaseUnavailable
from postroom.http import auth
from postroom.http import jwt as jwts
from postroom.http.auth import Keyring, local_service_key
from tests.http.conftest import KEY, PROCESS, Served, serving, settings_of
from tests.support.web import listening

SECRET = "a-secret-of-the-project-that-is-long-enough"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CLAIMS = {"role": "service_role", "iss": "supabase", "iat": 1_700_000_000, "exp": 4_000_000_000}


async def _asks(served: Served, token: str | bytes) -> int:
    shown = token.encode() if isinstance(token, str) else token
    headers = {b"authorization": b"Bearer " + shown}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, trust_env=False) as client:
        answer = await client.post(PROCESS)
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}
    return answer.status_code


def _part(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def _forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A JWT that no library would make."""
    signed = _part(header) + b"." + _part(claims)
    signature = b"" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _jwk(key: Any, **more: Any) -> dict[str, Any]:
    kind = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    found: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    return found | more


@dataclass
class KeyServer:
    """Serves a set of keys, and counts how often it is asked."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    status: int = 200


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """Supabase's /auth/v1/.well-known/jwks.json."""
    one = KeyServer(keys=[_jwk(EC_KEY, kid="ec", alg="ES256", use="sig"), _jwk(RSA_KEY, kid="rsa")])

    async def answer(_: web.Request) -> web.Response:
        one.asked += 1
        return web.json_response({"keys": one.keys}, status=one.status)

    served = web.Application()
    served.router.add_get("/jwks.json", answer)
    async with listening(served) as port:
        one.url = f"http://127.0.0.1:{port}/jwks.json"
        yield one


async def test_a_service_key_may_be_any_text(database_url: str, tmp_path: Path) -> None:
    """Letters of any script; near misses do not open."""
    key = "schlüssel ключ key"
    async with Room(**settings_of(database_url, tmp_path, service_key=key)) as room, serving(room) as served:
        assert await _asks(served, key) == 200
        assert [await _asks(served, near) for near in (key[:-1], key + "x", key.upper())] == [401] * 3


async def test_how_long_a_refusal_takes_says_nothing_about_the_key(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are compared as hashes of one length, by hmac.compare_digest, wherever they differ."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as served:
        monkeypatch.setattr(hmac, "compare_digest", noted)
        for token in (KEY[:-1] + "x", "x" + KEY[1:], "x"):
            assert await _asks(served, token) == 401
    digest = hashlib.sha256(KEY.encode()).digest()
    assert [other for _, other in compared] == [digest] * 3
    assert {len(one) for one, _ in compared} == {32}


async def test_a_key_of_the_database_opens_as_soon_as_it_is_made(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`postroom key new` keeps a hash there; a key that is deleted stops to open."""
    monkeypatch.setattr(auth, "STORED_KEYS_AGAIN_S", 0.0)
    monkeypatch.setattr(auth, "STORED_KEYS_GOOD_S", 0.0)
    async with (
        Room(**settings_of(database_url, tmp_path, service_key=None)) as room,
        serving(room) as served,
    ):
        assert await _asks(served, "pr_new") == 401
        digest = hashlib.sha256(b"pr_new").digest()
        await room.database.execute("INSERT INTO postroom.service_keys (key_hash) VALUES ($1)", digest)
        assert await _asks(served, "pr_new") == 200
        assert await _asks(served, "pr_old") == 401
        await room.database.execute("DELETE FROM postroom.service_keys")
        assert await _asks(served, "pr_new") == 401


async def test_wrong_keys_do_not_ask_the_database_each_time(database_url: str, tmp_path: Path) -> None:
    """A flood of wrong keys costs a few queries a second."""
    async with Room(**settings_of(database_url, tmp_path, service_key=None)) as room:
        keyring, loads = Keyring(room), 0
        load = keyring._load

        async def counted() -> None:
            nonlocal loads
            loads += 1
            await load()

        keyring._load = counted  # type: ignore[method-assign]
        for _ in range(500):
            assert not await keyring._is_stored(b"wrong")
        assert 1 <= loads < 50


async def test_a_key_that_was_good_stays_good_while_the_database_is_away(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an unknown one nothing can be said meanwhile."""
    async with Room(**settings_of(database_url, tmp_path)) as room:
        keyring = Keyring(room)
        await room.database.execute("INSERT INTO postroom.service_keys (key_hash) VALUES ($1)", b"known")
        assert await keyring._is_stored(b"known")

        async def away() -> None:
            raise DatabaseUnavailable("gone")

        monkeypatch.setattr(keyring, "_load", away)
        keyring._stored_at -= 60
        assert await keyring._is_stored(b"known")
        with pytest.raises(DatabaseUnavailable):
            await keyring._is_stored(b"other")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to leave a file as somebody else")
def test_a_local_key_that_somebody_else_has_left_there_opens_nothing(data_dir: Path) -> None:
    """In a folder that others may write to: a file or a link of theirs, whatever it leads to."""
    data_dir.mkdir(mode=0o755)
    target, path = data_dir / "known", data_dir / "service-key"
    target.write_text("a key that somebody knows")
    target.chmod(0o644)
    refused = f"{path} belongs to user 65534, who knows the key"
    path.write_text("a key that somebody knows")
    os.chown(path, 65534, 65534)
    assert _as_user(1000, path.parent) == refused
    path.unlink()
    path.symlink_to(target)
    os.chown(path, 65534, 65534, follow_symlinks=False)
    assert _as_user(1000, path.parent) == refused
    assert _as_user(65534, path.parent) == "a key that somebody knows"


def _as_user(uid: int, folder: Path) -> str:
    """What a process of that user takes for its key, or why it takes none."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(uid)
            said = local_service_key(folder)
        except BaseException as error:
            said = str(error).partition(":")[0]
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_a_local_key_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    """The file 0600, and a folder that is made for it closed to others."""
    before = os.umask(0)
    try:
        local_service_key(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "service-key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o066 == 0


async def test_the_embedded_database_has_a_key_in_its_folder(data_dir: Path) -> None:
    """Made at the first start, for its owner only, and the same at the next."""
    for _ in range(2):
        async with Room(data_dir=data_dir, sender="shop@example.com") as room:
            await migrate(await room.database_url())
            async with serving(room) as served:
                path = data_dir / "service-key"
                key = path.read_text().strip()
                assert path.stat().st_mode & 0o777 == 0o600
                assert await _asks(served, key) == 200
                assert await _asks(served, "wrong") == 401
    assert not [each for each in data_dir.iterdir() if each.name.startswith(".service-key")]


def test_a_local_key_is_made_once(tmp_path: Path) -> None:
    """A file that is there is read and left as it is; an empty one is an error that says what to do."""
    first = local_service_key(tmp_path / "new")
    assert len(first) > 40
    assert local_service_key(tmp_path / "new") == first
    (tmp_path / "service-key").write_text("mine\n")
    assert local_service_key(tmp_path) == "mine"
    (tmp_path / "service-key").write_text("\n")
    with pytest.raises(ConfigError, match="is empty: delete it"):
        local_service_key(tmp_path)


async def test_a_jwt_of_the_service_role_opens(database_url: str, tmp_path: Path) -> None:
    """HS256 by POSTROOM_JWT_SECRET; another role is 403, whatever is wrong is 401."""
    settings = settings_of(database_url, tmp_path, jwt_secret=SECRET)
    expired, early = {"exp": int(time.time()) - 3600}, {"nbf": int(time.time()) + 3600}
    expected = {
        200: [jwt.encode(CLAIMS, SECRET), jwt.encode({"role": "service_role"}, SECRET), KEY],
        403: [
            jwt.encode(CLAIMS | {"role": role}, SECRET)
            for role in ("anon", "authenticated", None, 7, ["service_role"])
        ],
        401: [
            jwt.encode(CLAIMS | expired, SECRET),
            jwt.encode(CLAIMS | early, SECRET),
            jwt.encode(CLAIMS, SECRET + "x"),
            _forged({"alg": "HS512"}, CLAIMS, SECRET.encode()),
            jwt.encode(CLAIMS, EC_KEY, algorithm="ES256"),
            jwt.encode(CLAIMS, RSA_KEY, algorithm="RS256"),
            _forged({"alg": "none"}, CLAIMS, None),
            _forged({"alg": "None", "typ": "JWT"}, CLAIMS, None),
            _forged({"alg": "HS256", "crit": ["x"]}, CLAIMS, SECRET.encode()),
            _forged({"typ": "JWT"}, CLAIMS, SECRET.encode()),
            _forged({"alg": ["HS256"]}, CLAIMS, SECRET.encode()),
            "a.b.c",
            "..",
            jwt.encode(CLAIMS | {"x": "x" * 20_000}, SECRET),
        ],
    }
    async with Room(**settings) as room, serving(room) as served:
        for status, tokens in expected.items():
            assert [await _asks(served, token) for token in tokens] == [status] * len(tokens)


async def test_a_jwt_is_nothing_where_none_is_expected(served: Served) -> None:
    """Without a secret and a key set, a JWT is a wrong key."""
    assert await _asks(served, jwt.encode(CLAIMS, SECRET)) == 401


async def test_a_jwt_of_the_key_set_opens(database_url: str, tmp_path: Path, key_server: KeyServer) -> None:
    """ES256 and RS256 by their own keys; no algorithm is confused with another."""
    settings = settings_of(database_url, tmp_path, jwks_url=key_server.url)
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key_server.keys.append({"kty": "oct", "kid": "oct", "alg": "HS256", "k": _part("secret").decode()})
    key_server.keys += [{"kty": "EC", "kid": "broken"}, {"kty": 5}, {}]
    expected = {
        200: [
            jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "ec"}),
            jwt.encode(CLAIMS, RSA_KEY, algorithm="RS256", headers={"kid": "rsa"}),
            jwt.encode(CLAIMS, EC_KEY, algorithm="ES256"),  # the only one of its kind
        ],
        403: [jwt.encode({"role": "anon"}, EC_KEY, algorithm="ES256", headers={"kid": "ec"})],
        401: [
            jwt.encode(CLAIMS, OTHER_EC_KEY, algorithm="ES256", headers={"kid": "ec"}),
            jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "rsa"}),
            jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "unknown"}),
            jwt.encode(CLAIMS, RSA_KEY, algorithm="RS384", headers={"kid": "rsa"}),
            jwt.encode(CLAIMS, SECRET, headers={"kid": "oct"}),
            _forged({"alg": "HS256", "kid": "rsa"}, CLAIMS, public),
            _forged({"alg": "RS256", "kid": "rsa"}, CLAIMS, public),
            _forged({"alg": "none", "kid": "ec"}, CLAIMS, None),
            _forged({"alg": "ES256", "kid": {"a": 1}}, CLAIMS, public),
        ],
    }
    async with Room(**settings) as room, serving(room) as served:
        for status, tokens in expected.items():
            assert [await _asks(served, token) for token in tokens] == [status] * len(tokens)
    # Fetched once; and for the unknown key no more often than every ten seconds.
    assert key_server.asked == 1


async def test_keys_are_fetched_anew_when_they_are_rotated(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token with an unknown key makes us look; while nobody answers, the known ones stay good."""
    monkeypatch.setattr(jwts, "KEYS_AGAIN_S", 0.0)
    verifier = jwts.Jwts(None, key_server.url)
    old = jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "ec"})
    new = jwt.encode(CLAIMS, OTHER_EC_KEY, algorithm="ES256", headers={"kid": "new"})
    assert await verifier.role(old) == "service_role"
    with pytest.raises(jwts.InvalidToken, match="its key is not known"):
        await verifier.role(new)
    key_server.keys = [_jwk(OTHER_EC_KEY, kid="new")]
    assert await verifier.role(new) == "service_role"
    with pytest.raises(jwts.InvalidToken):
        await verifier.role(old)
    key_server.status = 503
    monkeypatch.setattr(jwts, "KEYS_GOOD_S", 0.0)
    assert await verifier.role(new) == "service_role"


async def test_a_key_set_that_cannot_be_had_is_not_the_callers_fault(
    database_url: str, tmp_path: Path
) -> None:
    """Nothing can be said about the token: 500, not 401."""
    settings = settings_of(database_url, tmp_path, jwks_url="http://127.0.0.1:1/jwks.json")
    token = jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "ec"})
    async with Room(**settings) as room, serving(room) as served:
        assert await _asks(served, token) == 500
        assert await _asks(served, KEY) == 200
