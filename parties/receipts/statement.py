"""What a party vouches for, as it is signed with the key of its certificate.

Each party writes its own statement, of what it has seen or counted itself. A peer chooses nothing in it but the
session's id, whose form is fixed. Statements hold no text, no answer, and nothing that depends on either but what the
party sees anyway: shapes, numbers of queries, bytes, seconds.

Only whole numbers, words and lists of both are in a statement, so its canonical form is that of RFC 8785.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ...protocols.errors import BlindformerError
from ..certificates.tls_folder import CA, key_of, load_certificate, party_folder
from ..config import Role
from ..transport.frames import PRINTABLE
from ..transport.handshake import Hash, SessionId

Spent = Annotated[int, Field(ge=0, lt=2**40)]
Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$", max_length=16384)]
Word = Annotated[str, StringConstraints(pattern=PRINTABLE, max_length=256)]
Price = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}(\.[0-9]{1,20})?$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
DOMAIN = b"blindformer receipt 1\0"
"""Before all that is signed, so that no signature of a receipt is good for anything else."""


class ReceiptError(BlindformerError):
    """A receipt that cannot be issued, or is not what was signed."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Consumption(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    cpu_ms: Spent


class Spending:
    """CPU time that this process spends from now on."""

    def __init__(self) -> None:
        self._started = time.process_time()

    def so_far(self) -> Consumption:
        return Consumption(cpu_ms=round(1000 * (time.process_time() - self._started)))


class BytesByKind(Record):
    """Payload that this party sent to `peer`, and received."""

    peer: Role
    kind: Literal["weights", "correlations", "rounds", "messages"]
    sent: Count
    received: Count


class SessionFacts(Record):
    """One session as one party saw it.

    program, plan   hashes that the hello compares; of a program without a plan, the plan is empty
    weights         commitment to the masked weights in use, or the digest of public ones, against which the client has
                    checked every product; empty at the dealer, and at a party that has none
    queries         that were answered; of a conversation its passes; at the dealer, how often it dealt
    certificates    fingerprints that peers showed in TLS
    verify, passed  what the protocol checks of the others' messages, and whether all checks passed; None: none came
    """

    session: SessionId
    blindformer: Word
    topology: Literal["dealer", "helper", "pair"]
    program: Hash
    plan: Hash | Literal[""]
    weights: Hash | Literal[""] = ""
    queries: Count
    certificates: dict[Role, Hash]
    bytes: tuple[BytesByKind, ...]
    verify: Literal["none", "audits", "products"] = "none"
    passed: bool | None = None


class PartyStatement(Record):
    """What server, dealer and helper sign."""

    kind: Literal["party"] = "party"
    party: Role
    at: Count = Field(default_factory=lambda: int(time.time()))
    spent: Consumption
    facts: Annotated[tuple[SessionFacts, ...], Field(min_length=1, max_length=1)]


class StatedPrices(Record):
    """The prices that a receipt was computed with: `cpu_hour` and `gb` by party; `watts` of a core. Decimal numbers."""

    currency: Word = ""
    cpu_hour: dict[Role, Price] = {}
    gb: dict[Role, Price] = {}
    watts: Price = "10"


class PartyCost(Record):
    """What one party spent. `watt_hours`: of its CPU seconds, by the price list's watts of a core."""

    party: Role
    cpu_ms: Count
    sent: Count
    watt_hours: Word
    money: Word


class ClientStatement(Record):
    """What the client signs: its own part, and the digests of the other statements."""

    kind: Literal["client"] = "client"
    party: Literal["client"] = "client"
    at: Count = Field(default_factory=lambda: int(time.time()))
    spent: Consumption
    facts: Annotated[tuple[SessionFacts, ...], Field(min_length=1)]
    others: tuple[Hex, ...]
    ca: Hex
    model: Word
    plan: Word
    protocol: Word
    adversary: Word
    released: tuple[Word, ...]
    revealed: tuple[Word, ...]
    versions: dict[Word, Word]
    prices: StatedPrices
    costs: tuple[PartyCost, ...]


Statement = PartyStatement | ClientStatement


def canonical(record: Record) -> bytes:
    """What is signed, and hashed: keys in order, no spaces."""
    content = record.model_dump(mode="json")
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class SignedStatement(Record):
    """`signature`: of the statement's canonical form. `certificate`: of whoever signed, DER."""

    statement: Annotated[Statement, Field(discriminator="kind")]
    signature: Hex
    certificate: Hex

    @cached_property
    def shown(self) -> x509.Certificate:
        """Errors: ValueError."""
        return x509.load_der_x509_certificate(bytes.fromhex(self.certificate))

    @property
    def digest(self) -> str:
        """SHA-256 of statement, signature and certificate, hex."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(canonical(self))
        return digest.finalize().hex()

    def is_signed(self) -> bool:
        """Whether the certificate's key signed this statement."""
        try:
            key: Any = self.shown.public_key()
            key.verify(bytes.fromhex(self.signature), DOMAIN + canonical(self.statement), *_scheme(key))
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True


class Signer:
    """A party's certificate, its CA's, and the key to sign with. Errors: CertificateError; ReceiptError."""

    def __init__(self, folder: Path, role: str) -> None:
        folder = party_folder(folder, role, None)
        self.certificate, self.authority = load_certificate(folder / f"{role}.pem"), load_certificate(folder / CA)
        self._key: Any = serialization.load_pem_private_key(key_of(folder, role).read_bytes(), None)

    def sign(self, statement: Statement) -> SignedStatement:
        signature = self._key.sign(DOMAIN + canonical(statement), *_scheme(self._key))
        return SignedStatement(statement=statement, signature=signature.hex(), certificate=der(self.certificate))


def der(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.DER).hex()


def _scheme(key: object) -> tuple[Any, ...]:
    """How a key signs and verifies."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return (ec.ECDSA(hashes.SHA256()),)
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return padding.PKCS1v15(), hashes.SHA256()
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return ()
    raise ReceiptError("receipt: the certificate's key is neither ECDSA, RSA nor Ed25519; use a certificate of these")
