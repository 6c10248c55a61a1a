"""
The signature doctor: why a request's signature does not hold, and what to do.

What it finds is for the log and for the person who runs the server, never for the answer: a stranger
would learn from it how to write a better forgery. It names no secret and nothing of the body.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from postroom.errors import ConfigError, SignatureError, SignatureReason
from postroom.webhooks.places import step_into
from postroom.webhooks.request import WebhookRequest
from postroom.webhooks.rewritings import bodies, urls
from postroom.webhooks.schemes import SCHEMES, Scheme
from postroom.webhooks.schemes.base import HEADER_CHARACTERS_MAX, HmacScheme
from postroom.webhooks.source import Source

REWRITTEN_BYTES_MAX = 32 * 1024
"""Larger bodies are not written anew at the door: 170 ways of 56 KiB took 170 ms of a busy machine."""

_TRUNCATED_CHARACTERS_MIN = 8
_SIGNATURES_MAX = 8
"""How many signatures of a header, or headers of a name, are looked at."""

_SIGNATURE = re.compile(r"[0-9A-Za-z+/_-]{24,}={0,2}")
_BEGINNING = re.compile(r"[0-9A-Za-z+/_-]{8,}={0,2}")
_OTHER_WAY = "ask the provider's documents, or see what stands between it and postroom"


class Cause(StrEnum):
    """Why a signature does not hold, for programs."""

    CLOCK = "clock"
    HEADER_MISSING = "header_missing"
    HEADER_DOUBLED = "header_doubled"
    HEADER_TRUNCATED = "header_truncated"
    HEADER_UNREADABLE = "header_unreadable"
    OTHER_ENCODING = "other_encoding"
    OTHER_SCHEME = "other_scheme"
    OTHER_SOURCE = "other_source"
    OTHER_KEY = "other_key"
    OTHER_URL = "other_url"
    BODY_REWRITTEN = "body_rewritten"
    BODY_INCOMPLETE = "body_incomplete"
    BODY_UNREADABLE = "body_unreadable"
    SECRET_OR_BODY = "secret_or_body"  # noqa: S105 - a name, no password


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """
    What is wrong with a request's signature.

    Attributes:
        reason: Why it was refused.
        certain: It was tried, and with this mended the signature holds.
        found: What is wrong; no secret, and nothing of the body.
        advice: What to do.
    """

    reason: SignatureReason
    cause: Cause
    certain: bool
    found: str
    advice: str


_Look = Callable[["_Case"], Diagnosis | None]


def diagnose(
    source: Source,
    request: WebhookRequest,
    now_s: float,
    *,
    others: Iterable[Source] = (),
    rewritten_bytes_max: int = REWRITTEN_BYTES_MAX,
) -> Diagnosis | None:
    """
    Say why a request's signature does not hold.

    Args:
        now_s: Seconds since 1970.
        others: The further sources: their secrets are tried too.
        rewritten_bytes_max: A larger body is not written anew in the ways that are tried.

    Returns:
        None where it holds.
    """
    try:
        source.verify(request, now_s)
    except SignatureError as error:
        case = _Case(source, request, error.reason, error.sentence, tuple(others), rewritten_bytes_max)
        found = (look(case) for look in _LOOKS[error.reason])
        return next((diagnosis for diagnosis in found if diagnosis is not None), None) or _unknown(case)
    return None


@dataclass(frozen=True, slots=True)
class _Case:
    source: Source
    request: WebhookRequest
    # Of the error, which would hold its own trace and with it the body until the next collection of garbage.
    reason: SignatureReason
    sentence: str
    others: tuple[Source, ...]
    rewritten_bytes_max: int

    @property
    def scheme(self) -> Scheme:
        return self.source.scheme

    def is_mended_by(self, request: WebhookRequest, scheme: Scheme | None = None) -> bool:
        """Whether the signature would hold, its time aside."""
        return _holds(scheme or self.scheme, request, self.source.secrets)

    def says(self, cause: Cause, certain: bool, found: str, advice: str) -> Diagnosis:
        return Diagnosis(self.reason, cause, certain, found, advice)


def _clock(case: _Case) -> Diagnosis:
    return case.says(
        Cause.CLOCK,
        True,
        f"the signature holds, but {case.sentence}",
        "set this machine's clock; a request that was kept back or recorded is refused on purpose",
    )


def _missing(case: _Case) -> Diagnosis:
    return case.says(
        Cause.HEADER_MISSING,
        False,
        case.sentence,
        f"a proxy may drop it, or the request is not {case.scheme.name}'s",
    )


def _doubled(case: _Case) -> Diagnosis:
    name = _doubled_header(case)
    values = case.request.headers.all(name)
    good = [
        value
        for value in values[:_SIGNATURES_MAX]
        if case.is_mended_by(case.request.with_header(name, value))
    ]
    if good and len(set(values)) == 1:
        found = f"the header {name} is there {len(values)} times with the same signature, which holds"
    elif good:
        found = f"the header {name} is there {len(values)} times; one signature holds, others do not"
    else:
        found = case.sentence
    return case.says(
        Cause.HEADER_DOUBLED, bool(good), found, "see that no proxy adds it: two values could be two stories"
    )


def _doubled_header(case: _Case) -> str:
    names = [name for name, _ in case.request.headers if len(case.request.headers.all(name)) > 1]
    return next((name for name in names if name.lower() in case.sentence.lower()), "")


def _other_encoding(case: _Case) -> Diagnosis | None:
    for name in _signature_headers(case):
        value = case.request.headers.first(name) or ""
        for written, rewritten in _recoded(value):
            if case.is_mended_by(case.request.with_header(name, rewritten)):
                expected = "base64" if written == "hex" else "hex"
                return case.says(
                    Cause.OTHER_ENCODING,
                    True,
                    f"the signature in {name} is right, but written in {written}, and {expected} is expected",
                    f'for scheme hmac set encoding = "{written}"; else the sender is not {case.scheme.name}',
                )
    return None


def _other_prefix(case: _Case) -> Diagnosis | None:
    prefix = getattr(case.scheme, "prefix", "")
    for name in _signature_headers(case) if prefix else ():
        value = case.request.headers.first(name) or ""
        for found, rewritten in (
            (f"the signature in {name} is right, but {prefix} is missing before it", f"{prefix}{value}"),
            (
                f"the signature in {name} is right, but something other than {prefix} is before it",
                f"{prefix}{value.rpartition('=')[2]}",
            ),
        ):
            if case.is_mended_by(case.request.with_header(name, rewritten)):
                return case.says(
                    Cause.HEADER_UNREADABLE,
                    True,
                    found,
                    "for scheme hmac set prefix to what the sender writes",
                )
    return None


def _no_prefix(case: _Case) -> Diagnosis | None:
    """A prefix that this source does not expect, such as `sha256=` in scheme hmac."""
    if getattr(case.scheme, "prefix", None) != "":
        return None
    for name in _signature_headers(case):
        value = case.request.headers.first(name) or ""
        prefix, sign, bare = value.partition("=")
        if sign and bare and case.is_mended_by(case.request.with_header(name, bare)):
            return case.says(
                Cause.HEADER_UNREADABLE,
                True,
                f"the signature in {name} is right, but something stands before it",
                f'set prefix = "{prefix}=" where the scheme is hmac' if len(prefix) <= 16 else _OTHER_WAY,
            )
    return None


def _truncated(case: _Case) -> Diagnosis | None:
    for name in _signature_headers(case):
        value = case.request.headers.first(name) or ""
        for match in islice(_BEGINNING.finditer(value[:HEADER_CHARACTERS_MAX]), _SIGNATURES_MAX):
            whole = _completed(case, name, value, match)
            if whole is not None:
                return case.says(
                    Cause.HEADER_TRUNCATED,
                    True,
                    f"the signature in {name} is right as far as it goes, but only {len(match[0])} of its "
                    f"{whole} characters are there",
                    "see what cuts off long headers: a proxy, or a column that the request was kept in",
                )
    return None


def _completed(case: _Case, name: str, value: str, match: re.Match[str]) -> int | None:
    """The length of the signature that a text is the beginning of; None where it begins none."""
    scheme = case.scheme
    if not isinstance(scheme, HmacScheme):
        return None
    for empty in (bytes(size) for size in (32, 20, 48, 64)):
        for encode in (bytes.hex, _base64):
            full = f"{value[: match.start()]}{encode(empty)}{value[match.end() :]}"
            try:
                claim = scheme.read(case.request.with_header(name, full))
            except SignatureError:
                continue
            for secret in case.source.secrets:
                for expected in map(encode, scheme.expected(claim, scheme.key(secret))):
                    start = match[0].rstrip("=")
                    if len(start) >= _TRUNCATED_CHARACTERS_MIN and expected.lower().startswith(start.lower()):
                        return len(expected)
    return None


def _other_scheme(case: _Case) -> Diagnosis | None:
    known = [scheme for scheme in SCHEMES.values() if _bears(case.request, scheme)]
    others = [scheme for scheme in known if scheme.name != case.scheme.name]
    # Those whose usual header it is come first: Svix' schemes know Standard Webhooks' too.
    others.sort(key=lambda scheme: scheme.signature_headers[0] not in case.request.headers)
    for scheme in others:
        if case.is_mended_by(case.request, scheme):
            return _says_scheme(case, scheme, certain=True)
    own = any(name in case.request.headers for name in case.scheme.signature_headers)
    return None if own or not others else _says_scheme(case, others[0], certain=False)


def _says_scheme(case: _Case, scheme: Scheme, *, certain: bool) -> Diagnosis:
    if certain:
        found = f"the signature holds by scheme {scheme.name}; this source has scheme {case.scheme.name}"
    else:
        header = next(name for name in scheme.signature_headers if name in case.request.headers)
        found = f"{case.sentence}; it has {header}, which is scheme {scheme.name}'s"
    return case.says(
        Cause.OTHER_SCHEME,
        certain,
        found,
        f'set scheme = "{scheme.name}", or give the provider its own source',
    )


def _other_source(case: _Case) -> Diagnosis | None:
    for other in case.others:
        if (
            other.name != case.source.name
            and other.scheme.needs_secret
            and _holds(other.scheme, case.request, other.secrets)
        ):
            return case.says(
                Cause.OTHER_SOURCE,
                True,
                f"the signature holds by the secret of source {other.name}",
                f"let the provider call /webhooks/{other.name}, or exchange the two secrets",
            )
    return None


def _other_key(case: _Case) -> Diagnosis | None:
    scheme = case.scheme
    if not isinstance(scheme, HmacScheme):
        return None
    try:
        claim = scheme.read(case.request)
    except SignatureError:
        return None
    for secret in case.source.secrets:
        for what, key in _keys(secret):
            if scheme.holds_by_key(claim, key):
                return case.says(
                    Cause.OTHER_KEY,
                    True,
                    f"the signature holds by another reading of the secret: {what}",
                    f"compare the secret with the provider's, and the scheme: {scheme.name} takes "
                    f"{scheme.key_form}",
                )
    return None


def _keys(secret: str) -> Iterator[tuple[str, bytes]]:
    raw = secret.encode("utf-8", "surrogateescape")
    after = raw.partition(b"_")[2] or raw
    yield "as it is written, its prefix too", raw
    yield "without its prefix", after
    yield "without whitespace around it", raw.strip()
    yield "with a line break at its end", raw + b"\n"
    for what, decode in (("base64", binascii.a2b_base64), ("hexadecimal digits", binascii.unhexlify)):
        for text in (after, raw):
            try:
                yield f"as {what} of the key", decode(text)
            except ValueError:
                continue


def _other_url(case: _Case) -> Diagnosis | None:
    for what, url in urls(case.request.url) if case.scheme.signs_url else ():
        if case.is_mended_by(case.request.with_url(url)):
            return case.says(
                Cause.OTHER_URL,
                True,
                f"the signature holds for another address, which {what}",
                "set POSTROOM_PUBLIC_URL to the address that the provider calls, to the letter",
            )
    return None


def _incomplete_body(case: _Case) -> Diagnosis | None:
    length = case.request.headers.first("content-length") or ""
    if not (length.isascii() and length.isdigit()) or len(length) > 15:
        return None
    if int(length) == len(case.request.body):
        return None
    return case.says(
        Cause.BODY_INCOMPLETE,
        False,
        f"the body has {len(case.request.body):,} bytes, and Content-Length says {int(length):,}",
        "see what cut it off or unpacked it: the signature is of the bytes as they were sent",
    )


def _rewritten_body(case: _Case) -> Diagnosis | None:
    if len(case.request.body) > case.rewritten_bytes_max:
        return None
    for what, body in bodies(case.request.body):
        if case.is_mended_by(case.request.with_body(body)):
            return case.says(
                Cause.BODY_REWRITTEN,
                True,
                f"the body was written anew on its way: the signature holds for it {what}",
                "pass the bytes on as they came; no proxy or framework may parse and write them again",
            )
    return None


def _unknown(case: _Case) -> Diagnosis:
    reason = case.reason
    if reason == SignatureReason.HEADER_MALFORMED:
        return case.says(
            Cause.HEADER_UNREADABLE,
            False,
            case.sentence,
            f"it may be cut off, or be another scheme's; {case.scheme.name}'s is in {case.scheme.document}",
        )
    if reason == SignatureReason.BODY_MALFORMED:
        return case.says(Cause.BODY_UNREADABLE, False, case.sentence, f"see {case.scheme.document}")
    return case.says(Cause.SECRET_OR_BODY, False, _found_nothing(case), _advice_on_secrets(case))


def _found_nothing(case: _Case) -> str:
    count, body_bytes = len(case.source.secrets), len(case.request.body)
    by = f"{'the secret' if count == 1 else f'any of the {count} secrets'} of {case.source.name}"
    if body_bytes > case.rewritten_bytes_max:
        return (
            f"the signature does not hold by {by}; a body of {body_bytes:,} bytes was not written anew to try"
        )
    return f"the signature does not hold by {by}, for the body as it came or written anew"


def _advice_on_secrets(case: _Case) -> str:
    live = step_into(case.request.json, "livemode")
    if case.scheme.name == "stripe" and isinstance(live, bool):
        mode, other = ("live", "test") if live else ("test", "live")
        return (
            f"the event is of {mode} mode: take the secret of the {mode} endpoint, not of the {other} one; "
            "`stripe listen` prints one of its own"
        )
    return f"compare the secret with the provider's: {case.scheme.key_form}"


_LOOKS: dict[SignatureReason, tuple[_Look, ...]] = {
    SignatureReason.TOO_OLD: (_clock,),
    SignatureReason.TOO_NEW: (_clock,),
    SignatureReason.HEADER_MISSING: (_other_scheme, _missing),
    SignatureReason.HEADER_DOUBLED: (_doubled,),
    SignatureReason.HEADER_MALFORMED: (
        _other_encoding,
        _other_prefix,
        _no_prefix,
        _truncated,
        _other_scheme,
    ),
    SignatureReason.BODY_MALFORMED: (_other_scheme, _incomplete_body),
    SignatureReason.MISMATCH: (
        _other_source,
        _other_key,
        _other_url,
        _other_scheme,
        _rewritten_body,
        _incomplete_body,
    ),
}


def _holds(scheme: Scheme, request: WebhookRequest, secrets: Iterable[str]) -> bool:
    for secret in secrets:
        try:
            if scheme.holds(scheme.read(request), secret):
                return True
        except (SignatureError, ConfigError):  # a secret of one scheme is tried by another
            continue
    return False


def _bears(request: WebhookRequest, scheme: Scheme) -> bool:
    """Whether a request has a header that only this scheme's have."""
    if scheme.name in ("hmac", "none", "postmark"):
        return False
    return any(name in request.headers for name in scheme.signature_headers)


def _signature_headers(case: _Case) -> list[str]:
    return [name for name in case.scheme.signature_headers if len(case.request.headers.all(name)) == 1]


def _recoded(value: str) -> Iterator[tuple[str, str]]:
    """A header with its signatures in the other encoding, and the one that they were written in."""
    if len(value) > HEADER_CHARACTERS_MAX:
        return
    yield "hex", _SIGNATURE.sub(lambda match: _hex_to_base64(match[0]), value)
    yield "base64", _SIGNATURE.sub(lambda match: _base64_to_hex(match[0]), value)


def _hex_to_base64(text: str) -> str:
    try:
        return _base64(binascii.unhexlify(text))
    except ValueError:
        return text


def _base64_to_hex(text: str) -> str:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(bare + "=" * (-len(bare) % 4), strict_mode=True).hex()
    except ValueError:
        return text


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
