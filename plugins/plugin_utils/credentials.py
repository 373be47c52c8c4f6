# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run's own key pair and certificate, which agents pin; made for the run, gone with its sessions. Nothing of a user's credentials."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
import ssl
import threading
import typing as t

from ansible_collections.sojourn.deploy.plugins.plugin_utils.libraries import library, require


@contextlib.contextmanager
def _readable_path(data: bytes) -> t.Iterator[str]:
    """A path that holds ``data`` while the context lasts: ssl.load_cert_chain takes nothing else.

    On Linux it is anonymous memory, and no key touches a disk. Elsewhere it is a file that only this user can read, removed at once.
    """
    if hasattr(os, 'memfd_create'):
        descriptor = os.memfd_create('sojourn', os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f'/proc/self/fd/{descriptor}'
        finally:
            os.close(descriptor)
        return
    import tempfile

    with tempfile.NamedTemporaryFile(prefix='sojourn-') as file:  # mode 0600
        file.write(data)
        file.flush()
        yield file.name


class RunCredentials:
    """One key pair (ECDSA P-256) and self-signed certificate, and the TLS settings that use it."""

    def __init__(self, make: t.Callable[[], bytes]) -> None:
        self._make = make
        self._made: bytes | None = None
        self._lock = threading.Lock()

    @classmethod
    def make(cls, run: str) -> RunCredentials:
        """New ones, once they are needed: what makes them takes long to load, and who is about to sign in does not wait for it. Then raises SD-901."""
        return cls(functools.partial(_new, run))

    @classmethod
    def of(cls, certificate_and_key: str) -> RunCredentials:
        """Those that an earlier broker has had, both in PEM. Raises ValueError."""
        pem = certificate_and_key.encode('ascii')
        known = cls(lambda: pem)
        fingerprint_of_pem(known._certificate)
        return known

    def prepare(self) -> None:
        """Makes them, unless that is done."""
        self.pem  # noqa: B018

    @property
    def pem(self) -> bytes:
        """Both in PEM."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the certificate (DER): what an agent's config carries."""
        return fingerprint_of_pem(self._certificate)

    @property
    def _certificate(self) -> str:
        return self.pem.decode('ascii').partition('-----BEGIN PRIVATE')[0]

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 only, with this certificate as the client's. Whom to trust is not its business: the channel pins the agent's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with _readable_path(self.pem) as path:
            context.load_cert_chain(path)
        return context


def _new(run: str) -> bytes:
    x509 = library('cryptography.x509')
    hashes = library('cryptography.hazmat.primitives.hashes')
    serialization = library('cryptography.hazmat.primitives.serialization')
    ec = library('cryptography.hazmat.primitives.asymmetric.ec')
    require(x509)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f'sojourn-{run}')])
    now = datetime.datetime.now(datetime.UTC)
    # Both ends pin the certificate itself, so its dates decide nothing; wide, since the target's clock may be wrong.
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3650)).not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256()))
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def fingerprint_of_pem(pem: str) -> str:
    """Hex SHA-256 of a certificate in PEM. Raises ValueError."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
