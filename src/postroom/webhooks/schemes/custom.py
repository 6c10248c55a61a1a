"""
`hmac`: any provider that puts the HMAC of the body into one header.

    [webhooks.acme]
    scheme = "hmac"
    header = "X-Acme-Signature"
    algorithm = "sha256"    # or sha1, sha384, sha512
    encoding = "hex"        # or base64
    prefix = "sha256="      # what stands before it, if anything
"""

from __future__ import annotations

from postroom.webhooks.places import Body
from postroom.webhooks.schemes.plain import OfBody

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
ENCODINGS = ("hex", "base64")


class Hmac(OfBody):
    name = "hmac"
    document = "postroom.toml"
    key_form = "any text that is not empty"
    event_id = (Body("id"),)
    event_type = (Body("type"),)

    def __init__(
        self,
        header: str = "X-Signature",
        algorithm: str = "sha256",
        encoding: str = "hex",
        prefix: str = "",
    ) -> None:
        self.header = header
        self.signature_headers = (header,)
        self.algorithm = algorithm
        self.encoding = encoding
        self.prefix = prefix
