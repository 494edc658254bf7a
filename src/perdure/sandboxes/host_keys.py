"""Who a sandbox host and its clients are: a small authority, certificates with one name each, and what TLS is told of them."""

from __future__ import annotations

import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.ports import Clock
from perdure.sandboxes.host_link import PROTOCOL

Role = Literal["host", "client"]
AUTHORITY = "authority"
AUTHORITY_DAYS = 3_650
DAYS = 90
DAYS_MAX = 825
EARLIER = timedelta(minutes=5)  # clocks differ
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PRIVATE = 0o600


def enrol(folder: Path, name: str, role: Role, *, clock: Clock, days: int = DAYS) -> tuple[Path, Path, Path]:
    """Make a certificate; the first time also the authority that signs it. All files are for their owner only.

    Args:
        folder: where ``authority.pem``, ``authority.key`` and the others are; the key of the authority never leaves it.
        name: whom it names: lower-case letters, digits and hyphens.
        role: a ``host`` cannot act as a ``client``, and the other way round.
        clock: tells from when it counts.
        days: how long.

    Returns:
        The certificate, its key, and the certificate of the authority: what that machine needs.

    Raises:
        InputInvalidError: the name or the days cannot be, or there is a certificate of that name.
    """
    if not NAME.fullmatch(name) or name == AUTHORITY:
        raise InputInvalidError(f"`{name:.80}` is no name; expected lower-case letters, digits and hyphens")
    if not 1 <= days <= DAYS_MAX:
        raise InputInvalidError(f"a certificate counts for 1 to {DAYS_MAX} days, found {days}")
    now = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{AUTHORITY}.pem"
    if paths[0].exists() or paths[1].exists():
        raise InputInvalidError(f"`{paths[0]}` is there; remove it and its key to make another one")
    authority, signer = _authority(folder, now)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if role == "host" else ExtendedKeyUsageOID.CLIENT_AUTH
    made = (
        _begun(name, now, days)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    _write(paths[1], _private(key))
    _write(paths[0], made.public_bytes(serialization.Encoding.PEM))
    return paths


def _authority(folder: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, private = folder / f"{AUTHORITY}.pem", folder / f"{AUTHORITY}.key"
    if private.exists():
        key = serialization.load_pem_private_key(private.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputInvalidError(f"`{private}` is no key of ours; expected one of curve P-256")
        return x509.load_pem_x509_certificate(certificate.read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = "perdure sandbox hosts"
    made = (
        _begun(name, now, AUTHORITY_DAYS)
        .issuer_name(_named(name))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(private, _private(key))
    _write(certificate, made.public_bytes(serialization.Encoding.PEM))
    return made, key


def _begun(name: str, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE)
    with open(made, "wb") as file:  # noqa: PTH123 - a descriptor, made with its mode
        file.write(data)


def context(role: Role, certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """What TLS is told: version 1.3 only, both sides show a certificate of this one authority, and nothing is resumed.

    Raises:
        SandboxUnavailableError: a file is missing, does not fit, or its key is readable by others.
    """
    try:
        if key.stat().st_mode & 0o077:
            raise SandboxUnavailableError(f"`{key}` can be read by others; `chmod 600` it")
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role == "host" else ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        made.load_verify_locations(authority)
        made.load_cert_chain(certificate, key)
    except OSError as error:
        raise SandboxUnavailableError(
            f"the certificates of a sandbox {role} cannot be used ({error.strerror or error}); "
            "`perdure sandbox enrol` makes them"
        ) from error
    made.set_alpn_protocols([PROTOCOL])
    if role == "host":
        made.num_tickets = 0
    return made


def peer_name(peer: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Whom the certificate at the other end names; empty if it names nobody, or more than one."""
    found = peer.getpeercert() or {}
    names: list[str] = [str(entry[1]) for entry in found.get("subjectAltName", ()) if entry[0] == "DNS"]
    return names[0] if len(names) == 1 else ""
