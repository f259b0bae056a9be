"""Signs model packages and checks their signatures: Ed25519 over the 32 bytes of the package's SHA-256.

    python -m edge_agent.quick_look.signing keygen model-key.pem       (also writes model-key.pub.pem for the stations)
    python -m edge_agent.quick_look.signing sign new.fpmodel --key model-key.pem         (writes new.fpmodel.sig)

Never imported by the agent: cryptography costs 16 MB. Knows nothing of what a package holds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fieldpost.errors import FieldpostError, InvalidRequestError

SIGNATURE_BYTES = 64


def make_key() -> tuple[bytes, bytes]:
    """A new key: private and public, as PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def sign(package: bytes, private_pem: bytes) -> bytes:
    """The signature of a package, 64 bytes.

    Raises:
        InvalidRequestError: The key is no Ed25519 private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(f"expected a private key without password in PEM, but got {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidRequestError(f"expected an Ed25519 key, but got {type(key).__name__}")
    return key.sign(hashlib.sha256(package).digest())


def verify(package: bytes, signature: bytes, public_pem: bytes) -> None:
    """Checks a signature.

    Raises:
        InvalidRequestError: It is not that of this package by this key.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(f"expected a public key in PEM, but got {error} (model_key_file)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequestError(f"expected an Ed25519 key, but got {type(key).__name__} (model_key_file)")
    try:
        key.verify(signature, hashlib.sha256(package).digest())
    except InvalidSignature as error:
        raise InvalidRequestError(
            f"expected a signature of {SIGNATURE_BYTES} bytes by the station's model key, but got another",
            hint="sign the package with the key that belongs to model_key_file, and do not change it afterwards",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    verb = verbs.add_parser("keygen", help="make a key pair; keep the private one off the stations")
    verb.add_argument("key", type=Path, help="where the private key goes, NAME.pem")
    verb.set_defaults(action=lambda options: _keygen(options.key))
    verb = verbs.add_parser("sign", help="sign a package")
    verb.add_argument("package", type=Path)
    verb.add_argument("--key", type=Path, required=True, help="the private key")
    verb.set_defaults(action=lambda options: _sign_file(options.package, options.key))
    options = parser.parse_args(arguments)
    try:
        options.action(options)
    except (FieldpostError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _keygen(path: Path) -> None:
    private, public = make_key()
    # for the owner alone, and never over a key that is there
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    path.with_suffix(".pub.pem").write_bytes(public)


def _sign_file(path: Path, key: Path) -> None:
    path.with_name(path.name + ".sig").write_bytes(sign(path.read_bytes(), key.read_bytes()))


if __name__ == "__main__":
    sys.exit(main())
