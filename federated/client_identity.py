"""Who is behind a session's keys: a client signs its fresh keys with one that the others know beforehand.

The server passes keys on. Without signatures it could add clients that it invents, and then read what their pairs hide,
and take out noise that nobody added. A client that has a file of `known-keys` takes part with these alone.

Keys are those that Flower knows its nodes by (P-384, as OpenSSH writes them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from .settings import FederateError

MOST_BYTES = 1024  # of a public key, or of a signature
_SIGNS = ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class Signed:
    """A client's public keys of a session, and who has signed them: nobody, if empty."""

    mask: bytes
    seal: bytes
    signer: bytes = b""
    signature: bytes = b""

    def text(self, session: str, node: int) -> bytes:
        """What is signed: these keys for this node in this session, and for nothing else."""
        return f"blindformer secure sum {session} {node} ".encode() + self.mask + self.seal


@dataclass(frozen=True)
class ClientIdentity:
    """A client's own key, and the public keys of all whom it takes part with (empty: of anybody)."""

    key: EllipticCurvePrivateKey | None = field(default=None, repr=False)
    known: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, key: str, known: str) -> ClientIdentity:
        """`key`, `known`: files, or empty. Errors: FederateError."""
        return cls(_own(Path(key)) if key else None, _known(Path(known)) if known else frozenset())

    def sign(self, mask: bytes, seal: bytes, session: str, node: int) -> Signed:
        keys = Signed(mask, seal)
        if self.key is None:
            return keys
        return Signed(mask, seal, _written(self.key.public_key()), self.key.sign(keys.text(session, node), _SIGNS))

    def check(self, members: Mapping[int, Signed], session: str) -> None:
        """Errors: FederateError unless each has keys of its own that a known client has signed, and each only once."""
        if not self.known:
            return
        for node, keys in members.items():
            if keys.signer not in self.known or not _right(keys, session, node):
                raise FederateError(f"node {node} has keys that no client of its known-keys has signed; leave it out")
        if len({keys.signer for keys in members.values()}) < len(members):
            raise FederateError("two nodes have keys that one client has signed; leave one out")


def _right(keys: Signed, session: str, node: int) -> bool:
    try:
        public = load_ssh_public_key(keys.signer)
        assert isinstance(public, EllipticCurvePublicKey)
        public.verify(keys.signature, keys.text(session, node), _SIGNS)
    except (AssertionError, InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _own(file: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_ssh_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise FederateError(f"identity: {file} cannot be read ({error.strerror})") from None
    except (TypeError, UnsupportedAlgorithm, ValueError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise FederateError(f"identity: {file} is no private key of `ssh-keygen -t ecdsa` without a passphrase")
    return key


def _known(file: Path) -> frozenset[bytes]:
    """Public keys, one a line, as OpenSSH writes them."""
    try:
        lines = [line for line in file.read_bytes().splitlines() if line.strip() and not line.startswith(b"#")]
    except OSError as error:
        raise FederateError(f"known-keys: {file} cannot be read ({error.strerror})") from None
    known = set()
    for number, line in enumerate(lines, 1):
        try:
            public = load_ssh_public_key(line)
            assert isinstance(public, EllipticCurvePublicKey)
        except (AssertionError, UnsupportedAlgorithm, ValueError):
            raise FederateError(
                f"known-keys: {file}: line {number} is no public key of `ssh-keygen -t ecdsa`"
            ) from None
        known.add(_written(public))
    if not known:
        raise FederateError(f"known-keys: {file} holds no key, so nobody could take part; add the clients' public keys")
    return frozenset(known)


def _written(public: EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
