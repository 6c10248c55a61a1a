"""Who may call: the service key, or a JWT whose role is service_role."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from time import monotonic

from starlette.requests import Request

from postroom.database.embedded.home import make_data_dir
from postroom.database.keys import Key, read_keys
from postroom.errors import ConfigError, DatabaseUnavailable
from postroom.http.answers import Refused
from postroom.http.jwt import InvalidToken, Jwts
from postroom.room import Room

ROLE = "service_role"
CALL_AS = f"call with the {ROLE} key or a secret key, from a server or an edge function"
PUBLISHABLE = b"sb_publishable_"
JOB_KEY = b"pj_"
JOBS = (
    "/functions/v1/process-email-queue",
    "/functions/v1/process-webhook-retries",
    "/functions/v1/alerts",
)
"""What pg_cron's jobs may call with the keys that postroom.post_job makes for them."""
STORED_KEYS_GOOD_S = 5.0
STORED_KEYS_AGAIN_S = 0.25
"""A key that is not known is looked up in the database, but no more often than this."""


class Keyring:
    """
    The keys that open the doors.

    POSTROOM_SERVICE_KEY; where it is unset and the database is the embedded one, the key in its data
    folder; and those that `postroom key new` made, of which the database keeps the hashes.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._own: bytes | None = None
        self._stored: dict[bytes, Key] = {}
        self._stored_at = -STORED_KEYS_GOOD_S
        self._loading = asyncio.Lock()
        settings = room.settings
        jwt_secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret is not None else None
        has_jwts = jwt_secret is not None or settings.jwks_url is not None
        self._jwts = Jwts(jwt_secret, settings.jwks_url) if has_jwts else None

    async def own_hash(self) -> bytes | None:
        """The hash of this process's own key; makes the key of the data folder where it is missing."""
        if self._own is None:
            settings = self._room.settings
            if settings.service_key is not None:
                self._own = _hash(settings.service_key.get_secret_value().encode())
            elif settings.database_url is None:
                await self._room.open()  # whose data folder it is
                self._own = _hash(local_service_key(settings.data_dir).encode())
        return self._own

    async def require_service(self, request: Request) -> None:
        """
        Let pass who may do everything.

        Raises:
            Refused: There is no valid key (401), or its role may not (403).
        """
        token = _key_of(request)
        digest = _hash(token)
        own = await self.own_hash()
        if own is not None and hmac.compare_digest(digest, own):
            return
        problem = "the key is not valid"
        if token.count(b".") == 2 and self._jwts is None:
            problem = "no JWT is taken here: set POSTROOM_JWT_SECRET or POSTROOM_JWKS_URL"
        elif token.count(b".") == 2 and self._jwts is not None:
            try:
                role = await self._jwts.role(token.decode("latin-1"))
            except InvalidToken as error:
                problem = f"the JWT is not valid: {error}"
            else:
                if role == ROLE:
                    return
                raise Refused(403, _why_not(role))
        elif token.startswith(PUBLISHABLE):
            problem = f"a publishable key is for browsers: {CALL_AS}"
        if await self._is_stored(digest):
            if self._stored[digest].role == "operator":
                return
            raise Refused(403, "a viewer's key opens the dashboard's pages alone: use an operator's")
        if token.startswith(JOB_KEY) and request.url.path in JOBS and await self._is_of_a_job(digest):
            return
        raise _unauthorized(problem)

    async def key_of(self, key: str) -> Key | None:
        """The key that this is; None where it is none of ours."""
        digest = _hash(key.encode())
        own = await self.own_hash()
        if own is not None and hmac.compare_digest(digest, own):
            return _own_key(own)
        return self._stored[digest] if await self._is_stored(digest) else None

    async def keys(self) -> list[Key]:
        """Each key that is good, as of the last few seconds."""
        own = await self.own_hash()
        if monotonic() - self._stored_at > STORED_KEYS_AGAIN_S:
            async with self._loading:
                await self._load()
        return [*([_own_key(own)] if own is not None else []), *self._stored.values()]

    async def _is_stored(self, digest: bytes) -> bool:
        if digest in self._stored and monotonic() - self._stored_at < STORED_KEYS_GOOD_S:
            return True
        async with self._loading:
            if monotonic() - self._stored_at > STORED_KEYS_AGAIN_S:
                try:
                    await self._load()
                except DatabaseUnavailable:
                    # A key that was good stays so while nobody can be asked.
                    if digest not in self._stored:
                        raise
        return digest in self._stored

    async def _is_of_a_job(self, digest: bytes) -> bool:
        await self._room.open()
        good: bool = await self._room.database.fetchval(
            """
            SELECT EXISTS (
                SELECT FROM postroom.job_keys
                WHERE key_hash = $1 AND made_at > clock_timestamp() - interval '10 minutes'
            )
            """,
            digest,
        )
        return good

    async def _load(self) -> None:
        await self._room.open()
        self._stored = {key.key_hash: key for key in await read_keys(self._room.database)}
        self._stored_at = monotonic()


def local_service_key(data_dir: Path) -> str:
    """
    The key in the data folder; made once, for its owner only.

    Raises:
        ConfigError: It cannot be read or written, or somebody else has put it there.
    """
    path = data_dir / "service-key"
    try:
        key = _read(path)
        if key is None:
            make_data_dir(data_dir)
            _write_once(path, f"pr_{secrets.token_urlsafe(32)}")
            key = _read(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; set POSTROOM_SERVICE_KEY, or let it be written"
        ) from None
    if not key:
        raise ConfigError(f"{path} is empty: delete it, and the next start makes a new key")
    return key


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            # In a folder that others may write to, the key could be one that they know.
            for uid in (path.lstat().st_uid, os.fstat(file.fileno()).st_uid):
                if uid not in (os.geteuid(), 0) and os.geteuid() != 0:
                    raise ConfigError(
                        f"{path} belongs to user {uid}, who knows the key: delete it, "
                        "or set POSTROOM_SERVICE_KEY"
                    )
            return file.read().strip()
    except FileNotFoundError:
        return None


def _write_once(path: Path, key: str) -> None:
    """Write a whole file, or leave the one that another process has written meanwhile."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{key}\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        draft.unlink()


def _key_of(request: Request) -> bytes:
    """Who calls is who Authorization names, as at Supabase: `apikey` beside it names the project alone."""
    # The bytes as they came: a key may be any text, and headers are decoded as Latin-1.
    headers = dict(reversed(request.headers.raw))
    value = headers.get(b"authorization", b"").strip()
    if not value:
        value = b"Bearer " + headers.get(b"apikey", b"")
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise _unauthorized("a key is needed: Authorization: Bearer KEY")
    return token


def _why_not(role: str | None) -> str:
    whose = {
        "anon": "this is the anon key, which any browser has",
        "authenticated": "this is the token of a signed-in user",
    }
    return f"{whose.get(role or '', f'the role of this JWT is not {ROLE}')}: {CALL_AS}"


def _own_key(key_hash: bytes) -> Key:
    return Key(key_hash, "service key", "operator")


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(error: str) -> Refused:
    return Refused(401, error, {"www-authenticate": "Bearer"})
