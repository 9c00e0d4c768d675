"""TLS for a fleet server that has no proxy in front of it: one certificate chain and its key, in PEM files.

uvicorn reads them once, at the start. A renewed pair is taken up at SIGHUP without a restart: new connections get the
new certificate, open ones keep theirs. A pair that does not load changes nothing.

X1 does not rest on TLS; tokens of publishers and operators do. Not here: client certificates.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

MAX_FILE: Final = 1_048_576
OLDEST: Final = ssl.TLSVersion.TLSv1_3  # every client of ours speaks it


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate chain (the server's own first) and its private key lie."""

    certificate: Path
    key: Path

    def check(self) -> datetime:
        """Return when the certificate ends.

        Raises UsageError if the files are missing, no PEM, encrypted, or do not belong together.
        """
        for place in (self.certificate, self.key):
            if not place.is_file() or place.stat().st_size > MAX_FILE:
                raise UsageError(f"{place} is not a PEM file", hint="--tls-cert and --tls-key name two PEM files")
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return x509.load_pem_x509_certificates(self.certificate.read_bytes())[0].not_valid_after_utc

    def load(self, context: ssl.SSLContext) -> None:
        """Have `context` answer with these.

        Raises UsageError; a context that was in use should be given only files that `check` has passed.
        """
        try:
            context.load_cert_chain(self.certificate, self.key, password=_nobody)
            context.minimum_version = OLDEST
        except ssl.SSLError as e:
            reason = (e.reason or "no certificate or no key in PEM").replace("_", " ").lower()
            raise UsageError(
                f"{self.certificate.name} and {self.key.name} cannot be used for TLS: {reason}",
                hint="expected a certificate chain, the server's own first, and its key without a passphrase",
            ) from e


def _nobody() -> str:
    """Stand in for a person at OpenSSL's passphrase prompt, at which a service would hang."""
    return ""
