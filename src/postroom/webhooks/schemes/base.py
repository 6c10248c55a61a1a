"""What a scheme is, and what most of them share."""

from __future__ import annotations

import binascii
import hmac
import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json import dumps
from secrets import token_hex
from typing import ClassVar

from postroom.errors import ConfigError, SignatureError, SignatureReason
from postroom.webhooks.places import Places, read_id, read_type
from postroom.webhooks.request import JSON, Answer, WebhookRequest

TOLERANCE_S = 300.0
SIGNATURES_MAX = 32
"""How many signatures one request may present: more is no rotation."""

HEADER_CHARACTERS_MAX = 8_192

_TIMESTAMP = re.compile(r"[0-9]{1,16}", re.ASCII)
_BYTES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}


@dataclass(frozen=True, slots=True)
class Claim:
    """
    What a request claims: one of these signatures is that of one of these messages.

    Attributes:
        timestamp_s: When it was signed, by the signer's clock, where it says so.
        public: Signatures that a public key verifies, where a scheme knows both kinds.
        also: Further claims that must hold by the same secret.
    """

    messages: tuple[bytes, ...] = field(repr=False)
    signatures: tuple[bytes, ...] = field(repr=False)
    timestamp_s: float | None = None
    public: tuple[bytes, ...] = field(default=(), repr=False)
    also: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """
    A request whose signature holds.

    Attributes:
        timestamp_s: When it was signed, by the signer's clock, where the scheme says so.
        secret_index: Which of the secrets it was, counted from 0.
    """

    event_id: str | None
    event_type: str | None
    timestamp_s: float | None = None
    secret_index: int = 0


class Scheme(ABC):
    """
    How a provider signs. It has no state: what it needs to know of a source comes in.

    Attributes:
        document: Where the provider says so.
        key_form: What its secret looks like, for people.
        signature_headers: Where the signature is, the first one being the usual.
        signs_url: The address is signed as well, so POSTROOM_PUBLIC_URL must be known.
        comma_separates: Its secrets hold no comma, so one setting may list several.
        needs_secret: It verifies by a secret.
        content_type: Of its events' bodies.
        methods: With which events come.
        takes_verify_token: Its provider confirms an address by a word that both sides know.
        refusal_status: What a wrong signature is answered with.
    """

    name: ClassVar[str]
    document: ClassVar[str]
    key_form: ClassVar[str]
    signature_headers: tuple[str, ...] = ()
    signs_url: bool = False
    comma_separates: ClassVar[bool] = False
    needs_secret: ClassVar[bool] = True
    content_type: ClassVar[str] = JSON
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    takes_verify_token: ClassVar[bool] = False
    refusal_status: ClassVar[int] = 400
    event_id: Places = ()
    event_type: Places = ()

    @abstractmethod
    def read(self, request: WebhookRequest) -> Claim:
        """
        What the request claims.

        Raises:
            SignatureError: A part of the signature is missing or cannot be read.
        """

    @abstractmethod
    def holds(self, claim: Claim, secret: str) -> bool:
        """Whether the claim holds by this secret; compared in constant time."""

    @abstractmethod
    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:
        """The request as the provider would send it; the id goes where the provider has it in a header."""

    def verify(
        self,
        request: WebhookRequest,
        secrets: Sequence[str],
        now_s: float,
        *,
        tolerance_s: float = TOLERANCE_S,
        event_id: Places | None = None,
        event_type: Places | None = None,
    ) -> Verified:
        """
        Check a request's signature and its time.

        Args:
            secrets: Several during a rotation; one that fits is enough.
            now_s: Seconds since 1970.
            tolerance_s: How far the signer's clock may be off, in either direction.
            event_id: Where the id is, if not where the scheme has it.
            event_type: The same for the type.

        Raises:
            SignatureError: It does not hold, or its time is too far off.
            ConfigError: A secret has not this scheme's form.
        """
        claim = self.read(request)
        for index, secret in enumerate(secrets):  # noqa: B007  which one it was is told
            if self.holds(claim, secret):
                break
        else:
            raise SignatureError(
                SignatureReason.MISMATCH,
                "the signature is that of another body or of another secret",
            )
        _check_time(claim.timestamp_s, now_s, tolerance_s)
        return Verified(
            event_id=read_id(self.event_id if event_id is None else event_id, request),
            event_type=read_type(self.event_type if event_type is None else event_type, request),
            timestamp_s=claim.timestamp_s,
            secret_index=index,
        )

    def check_secret(self, secret: str) -> None:
        """
        Refuse a secret that can never verify anything.

        Raises:
            ConfigError: It has not this scheme's form; the text does not show it.
        """
        if not secret:
            raise ConfigError("it is empty")

    def signing_secret(self) -> tuple[str, str]:
        """A fresh secret for tests: what the provider signs with, and what a source verifies with."""
        secret = token_hex(24)
        return secret, secret

    def greet(self, request: WebhookRequest, verify_token: str | None) -> Answer | None:  # noqa: ARG002
        """What answers a request that carries no event and no signature, such as a probe by HEAD."""
        return Answer(200) if request.method == "HEAD" else None

    def handshake(self, request: WebhookRequest, secret: str) -> Answer | None:  # noqa: ARG002
        """What answers a request that is signed and carries no event: nothing of it is stored."""
        return None

    def acknowledge(self, request: WebhookRequest) -> Answer | None:  # noqa: ARG002
        """What tells this provider that its event is stored; None leaves it to the door."""
        return None


class HmacScheme(Scheme):
    """A scheme whose signature is an HMAC."""

    algorithm: str = "sha256"
    """A name of hashlib's."""

    def key(self, secret: str) -> bytes:
        """The key that a secret stands for."""
        return secret.encode("utf-8", "surrogateescape")

    def digest(self, message: bytes, secret: str) -> bytes:
        """The signature of a message."""
        return hmac.digest(self.key(secret), message, self.algorithm)

    def holds(self, claim: Claim, secret: str) -> bool:
        return self.holds_by_key(claim, self.key(secret))

    def holds_by_key(self, claim: Claim, key: bytes) -> bool:
        """Whether the claim holds by the key that a secret stands for."""
        for expected in self.expected(claim, key):
            for signature in claim.signatures:
                if hmac.compare_digest(expected, signature):
                    return not claim.also or all(self.holds_by_key(further, key) for further in claim.also)
        return False

    def expected(self, claim: Claim, key: bytes) -> list[bytes]:
        """The signatures of which one would hold."""
        return [hmac.digest(key, message, self.algorithm) for message in claim.messages]

    def from_hex(self, text: str, where: str) -> bytes:
        """A signature that is written in hexadecimal digits."""
        return decode_hex(text, _BYTES[self.algorithm], where)

    def from_base64(self, text: str, where: str) -> bytes:
        """A signature that is written in base64."""
        return decode_base64(text, _BYTES[self.algorithm], where)


def one_header(request: WebhookRequest, name: str) -> str:
    """
    The only value of a header.

    Raises:
        SignatureError: It is missing, is there more than once, or is longer than any of its kind.
    """
    values = request.headers.all(name)
    if not values or not values[0]:
        raise SignatureError(SignatureReason.HEADER_MISSING, f"the header {name} is missing")
    if len(values) > 1:
        raise SignatureError(
            SignatureReason.HEADER_DOUBLED, f"the header {name} is there {len(values)} times, not once"
        )
    if len(values[0]) > HEADER_CHARACTERS_MAX:
        raise malformed(name, f"is longer than {HEADER_CHARACTERS_MAX:,} characters")
    return values[0]


def without_prefix(text: str, prefix: str, where: str) -> str:
    """What follows a prefix that must be there."""
    if not text.startswith(prefix):
        raise malformed(where, f"does not begin with {prefix}")
    return text[len(prefix) :]


def read_timestamp(text: str, where: str, *, units_per_s: int = 1) -> float:
    """Seconds since 1970, of a whole number of seconds or smaller units."""
    if not _TIMESTAMP.fullmatch(text):
        raise malformed(where, "is no whole number of time since 1970")
    return int(text) / units_per_s


def read_fields(text: str, separator: str, where: str) -> list[tuple[str, str]]:
    """Names and values of a header such as `t=1,v1=2`."""
    fields = text.split(separator, SIGNATURES_MAX + 8)
    if len(fields) > SIGNATURES_MAX + 8:
        raise malformed(where, f"has more than {SIGNATURES_MAX} signatures")
    pairs = (field.strip().partition("=") for field in fields)
    return [(name, value) for name, _, value in pairs]


def one_field(fields: list[tuple[str, str]], name: str, where: str) -> str:
    """The only value of a name among such fields."""
    values = [value for own, value in fields if own == name]
    if len(values) != 1:
        raise malformed(where, f"has {len(values) or 'no'} {name}= where one is expected")
    return values[0]


def some_signatures(decoded: Sequence[bytes | SignatureError], where: str) -> tuple[bytes, ...]:
    """The signatures of which some may be unreadable: that is an error where all are."""
    good = tuple(signature for signature in decoded if isinstance(signature, bytes))
    if not good:
        bad = next((error for error in decoded if isinstance(error, SignatureError)), None)
        if bad is None:
            raise malformed(where, "holds no signature of the expected version")
        raise _anew(bad)
    if len(good) > SIGNATURES_MAX:
        raise malformed(where, f"has more than {SIGNATURES_MAX} signatures")
    return good


def decode_hex(text: str, length: int, where: str) -> bytes:
    """Hexadecimal digits of a known number of bytes."""
    try:
        data = binascii.unhexlify(text)
    except ValueError:
        raise malformed(where, f"is not written in hexadecimal digits, {length * 2} of them") from None
    if len(data) != length:
        raise malformed(where, f"has {len(text)} hexadecimal digits where {length * 2} are expected")
    return data


def decode_base64(text: str, length: int | None, where: str) -> bytes:
    """Base64 of a known number of bytes."""
    try:
        data = binascii.a2b_base64(text.encode("latin-1", "replace"), strict_mode=True)
    except ValueError:
        raise malformed(where, "is not written in base64") from None
    if not data or (length is not None and len(data) != length):
        raise malformed(where, f"is base64 of {len(data)} bytes where {length or 'some'} are expected")
    return data


def tried(decode: Callable[[str, str], bytes], text: str, where: str) -> bytes | SignatureError:
    """What a decoder gives, or why it does not: for headers that hold several signatures."""
    try:
        return decode(text, where)
    except SignatureError as error:
        return _anew(error)


def malformed(where: str, problem: str) -> SignatureError:
    """A header that cannot be read."""
    return SignatureError(SignatureReason.HEADER_MALFORMED, f"the header {where} {problem}")


def wire(text: str) -> bytes:
    """The bytes of a header's value as they came."""
    return text.encode("latin-1", "replace")


def url_bytes(url: str) -> bytes:
    """The bytes of an address."""
    return url.encode("utf-8", "surrogatepass")


def json_bytes(text: str) -> bytes:
    """The bytes of a text from JSON, where half a character is kept apart from every other text."""
    return text.encode("utf-8", "surrogatepass")


def with_json(request: WebhookRequest, content: object) -> WebhookRequest:
    """The request with this content as its body; the bytes stay where they say the same already."""
    if request.json == content:
        return request
    return request.with_body(
        dumps(content, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")
    )


def base64(data: bytes) -> str:
    """Data in base64, as a text."""
    return b64encode(data).decode()


def _anew(error: SignatureError) -> SignatureError:
    """
    The same without a trace.

    An error that a frame of its own trace holds is garbage that only a collection finds, and until then it
    holds the body: 7,500 refused requests, some of megabytes, were 400 MiB.
    """
    return SignatureError(error.reason, error.sentence)


def _check_time(timestamp_s: float | None, now_s: float, tolerance_s: float) -> None:
    if timestamp_s is None:
        return
    off_s = now_s - timestamp_s
    if off_s > tolerance_s:
        reason, off = SignatureReason.TOO_OLD, f"{off_s:.0f} s ago"
    elif off_s < -tolerance_s:
        reason, off = SignatureReason.TOO_NEW, f"{-off_s:.0f} s in the future"
    else:
        return
    raise SignatureError(
        reason, f"it was signed {off} by this machine's clock; {tolerance_s:.0f} s are allowed"
    )
