"""Certificates of a test's own, by openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cluster.nodes import Tls

BOTH = "extendedKeyUsage=serverAuth,clientAuth"
"""etcd's gateway is a client of etcd itself, by the certificate of the node."""


class Authority:
    """A CA in a directory, and what it signs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        _openssl("req", "-x509", *_new_key(self._key), "-subj", "/CN=test CA", "-days", "2", "-out", self.certificate)

    def sign(self, name: str, subject: str, names: str) -> tuple[Path, Path]:
        """Certificate and key. `subject` as openssl has it, "/" for an empty one; `names` is the subjectAltName."""
        request, certificate, key, extensions = (
            self.directory / f"{name}.{ending}" for ending in ("req", "pem", "key", "ext")
        )
        # A certificate without a subject must say that its other names are critical (RFC 5280, 4.2.1.6).
        extensions.write_text(f"subjectAltName={'critical,' if subject == '/' else ''}{names}\n{BOTH}\n")
        _openssl("req", "-new", *_new_key(key), "-subj", subject, "-out", request)
        by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *by, "-days", "2", "-extfile", extensions, "-out", certificate)
        return certificate, key

    def tls(self) -> Tls:
        """Of a node on this host, and of a client without a CommonName."""
        return Tls(
            self.certificate,
            *self.sign("node", "/O=etcd", "IP:127.0.0.1,DNS:localhost"),
            *self.sign("client", "/", "DNS:host-a"),
        )


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
