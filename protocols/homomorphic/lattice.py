"""Ring-LWE as SEAL computes it, on raw coefficients: messages modulo any t, not only moduli that SEAL has.

SEAL does all that is secret: keys, errors, encryption, decryption. Its CKKS adds a polynomial to an encryption of zero
and gives back c0 + c1 s, so floor(Q m / t) in it is BFV's embedding of m, here for t = 2^64 as well.

Degree 8192, Q of 50 + 50 + 56 bits, and a prime of 56 bits above it: 212 bits in all, where 218 have 128-bit security
with a ternary secret and errors of deviation 3.2 (HomomorphicEncryption.org's standard, as SEAL's hestdparms.h has it;
`narrow` is a context that SEAL checks against it). Two contexts have the same secret key. `wide` has these four primes
as ciphertexts' own: what is sent first is encrypted modulo all four, and the last one is divided away after the
product, and most of the noise with it. SEAL sets a context's last prime apart; wide's is one more, modulo which nothing
is ever published. `narrow` has the fourth prime for key switching and for encryption under the public key.

A ciphertext's second part is uniform, and travels, and is kept, as a seed. SEAL gives (b', a') with b' + a' s = m + e.
For a of the seed, decrypting (b', a' - a) gives b = m + e - a s, so (b, a) is a ciphertext with the same fresh error.

Nothing that comes from outside is parsed by SEAL: messages are coefficients of a fixed number of bits, each checked to
be below its prime, and are put into SEAL's form here. A foreign message of another size is one line of an error.
"""

from __future__ import annotations

import secrets
import struct
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..channel import Buffer
from ..errors import BlindformerError
from ..kernels import library
from .merging import Merging
from .polynomials import Polynomials
from .residues import Words, packed_residues, reduced, residue_bytes, uniform, unpacked_residues

seal: Any = import_module("seal") if find_spec("seal") else None  # an extra

DEGREE = 8192
_BITS = (50, 50, 56, 56)
_UNUSED_BITS = 57
SECURE_BITS = 218  # of the modulus at 128-bit security, by the standard's table for this degree
LARGEST_ERROR = 21  # SEAL's errors are differences of 21 coins each
DATA_PRIMES, ALL_PRIMES = 3, 4
MOST_MERGES = 7  # of ciphertexts into one, as a power of two: keys are made for these
SEED_BYTES = 32
CIPHERTEXT_BYTES = SEED_BYTES + residue_bytes(DEGREE, _BITS)
PUBLIC_BYTES = CIPHERTEXT_BYTES * (1 + MOST_MERGES * DATA_PRIMES)

_HEADER = struct.Struct("<HBBBBHQ")  # magic, its size, version, version, compression, reserved, size in all
_ID = 32


class HomomorphicError(BlindformerError):
    """A key, ciphertext or shape that homomorphic products cannot use."""


class Lattice:
    """SEAL's two contexts, and its objects from raw numbers and back. Use `lattice()`."""

    def __init__(self) -> None:
        if seal is None:
            raise HomomorphicError("seal-python is missing; run: pip install 'blindformer[nodealer]'")
        if library.library is None:
            raise HomomorphicError("homomorphic products need C kernels; install a C compiler, then blindformer again")
        self.wide = _context((*_BITS, _UNUSED_BITS), seal.sec_level_type.none)
        self.narrow = _context(_BITS, seal.sec_level_type.tc128)
        self.primes = _primes(self.narrow)
        if _primes(self.wide)[:ALL_PRIMES] != self.primes or sum(_BITS) > SECURE_BITS:
            raise HomomorphicError("this version of SEAL has other primes; install seal-python 4.4")
        version = seal.Ciphertext(self.wide).to_string(seal.compr_mode_type.none)[3:5]
        self._version = version[0], version[1]
        self.first = _id(self.wide.first_parms_id())
        self.key_level = _id(self.narrow.key_context_data().parms_id())
        data = self.narrow.first_context_data()
        self.sent_level = _id(data.next_context_data().parms_id())
        self.elements = [1 + 2 * DEGREE // (1 << step) for step in range(1, MOST_MERGES + 1)]
        self.all = Polynomials(self.primes, [self._power(1 << step) for step in range(DEGREE.bit_length() - 1)])
        self.data, self.sent = self.all.first(DATA_PRIMES), self.all.first(2)

    def framed(self, *members: bytes) -> bytes:
        body = b"".join(members)
        return _HEADER.pack(0xA15E, _HEADER.size, *self._version, 0, 0, _HEADER.size + len(body)) + body

    def numbers(self, values: Words) -> bytes:
        return self.framed(struct.pack("<Q", values.size), np.ascontiguousarray(values).tobytes())

    def ciphertext_form(self, values: Words, level: bytes, transformed: bool = True) -> bytes:
        """SEAL's form of a ciphertext [parts, primes, degree] at a level."""
        parts, primes, degree = values.shape
        sizes = struct.pack("<?QQQdQ", transformed, parts, degree, primes, 1.0, 1)
        return self.framed(level, sizes, self.numbers(values))

    def ciphertext(self, values: Words, level: bytes, transformed: bool = True) -> Any:
        loaded = seal.Ciphertext()
        context = self.wide if level == self.first else self.narrow
        loaded.load_bytes(context, self.ciphertext_form(values, level, transformed))
        return loaded

    def plaintext(self, values: Words, level: bytes) -> Any:
        """A polynomial [primes, degree] of transformed numbers."""
        loaded = seal.Plaintext()
        context = self.wide if level == self.first else self.narrow
        form = self.framed(level, struct.pack("<Qd", values.size, 1.0), self.numbers(values))
        loaded.load_bytes(context, form)
        return loaded

    def polynomial(self, coefficients: Words, context: Any) -> Any:
        """SEAL's plaintext [degree] of another context, by its coefficients."""
        loaded = seal.Plaintext()
        sizes = struct.pack("<Qd", coefficients.size, 1.0)
        loaded.load_bytes(context, self.framed(bytes(_ID), sizes, self.numbers(coefficients)))
        return loaded

    def _power(self, power: int) -> Words:
        """Values of X^power at SEAL's points, [primes, degree]: it transforms ciphertexts."""
        coefficients = np.zeros((2, ALL_PRIMES, DEGREE), dtype=np.uint64)
        coefficients[:, :, power] = 1
        ciphertext = self.ciphertext(coefficients, self.first, transformed=False)
        seal.Evaluator(self.wide).transform_to_ntt_inplace(ciphertext)
        return values_of(ciphertext)[0]


@cache
def lattice() -> Lattice:
    """Made once a process. Errors: HomomorphicError without seal-python."""
    return Lattice()


class LatticeKey:
    """A secret key, and what its holder publishes of it. New for every session; it stays in this object."""

    def __init__(self) -> None:
        ring = lattice()
        generator = seal.KeyGenerator(ring.wide)
        self._secret = generator.secret_key()
        self._encryptor = seal.Encryptor(ring.wide, self._secret)
        self._wide_decryptor = seal.Decryptor(ring.wide, self._secret)
        form = bytes(self._secret.to_string())[-8 * DEGREE * (ALL_PRIMES + 1) :]
        values = np.frombuffer(form, dtype=np.uint64).reshape(-1, DEGREE)[:ALL_PRIMES]
        sizes = struct.pack("<Qd", values.size, 1.0)
        self._narrow = ring.narrow.from_secret_str(ring.framed(ring.key_level, sizes, ring.numbers(values)))
        self._decryptor = seal.Decryptor(ring.narrow, self._narrow)

    def encrypted(self, message: Words) -> bytes:
        """Polynomials [primes, degree], to which an error is added, encrypted modulo all primes: CIPHERTEXT_BYTES."""
        ring = lattice()
        plain = ring.plaintext(ring.all.values(message), ring.first)
        return self._sealed(values_of(self._encryptor.encrypt_symmetric(plain)))

    def _sealed(self, values: Words) -> bytes:
        """A fresh ciphertext [2, primes, degree], its second part replaced by that of a seed."""
        ring, seed = lattice(), secrets.token_bytes(SEED_BYTES)
        second = uniform(seed, "second part", ring.primes, DEGREE)
        primes = np.array(ring.primes, dtype=np.uint64)[:, None]
        moved = np.stack([values[0], (values[1] + primes - second) % primes])
        plain = seal.Plaintext()
        self._wide_decryptor.decrypt(ring.ciphertext(moved, ring.first), plain)
        data = plain.to_bytes(seal.compr_mode_type.none)[-8 * ALL_PRIMES * DEGREE :]
        return seed + packed_residues(np.frombuffer(data, dtype=np.uint64).reshape(ALL_PRIMES, DEGREE), _BITS)

    def public(self) -> bytes:
        """What others need to reply: the public key, and keys that merge ciphertexts. PUBLIC_BYTES."""
        ring, parts = lattice(), [self.encrypted(np.zeros((ALL_PRIMES, DEGREE), dtype=np.uint64))]
        for element in ring.elements:
            keys = seal.GaloisKeys()
            seal.KeyGenerator(ring.narrow, self._narrow).create_galois_keys([_steps(element)], keys)
            form, one = bytes(keys.to_string()), 8 * 2 * ALL_PRIMES * DEGREE
            prefix = len(ring.ciphertext_form(np.zeros((2, ALL_PRIMES, 0), dtype=np.uint64), ring.key_level))
            at = _HEADER.size + _ID + 8 + 8 * ((element - 1) // 2 + 1)
            for digit in range(DATA_PRIMES):
                start = at + digit * (prefix + one) + prefix
                values = np.frombuffer(form, dtype=np.uint64, count=one // 8, offset=start)
                parts.append(self._sealed(values.reshape(2, ALL_PRIMES, DEGREE)))
        return b"".join(parts)

    def phases(self, pairs: Words) -> Words:
        """c0 + c1 s of ciphertexts [2, 2, degree], coefficients modulo a reply's two primes -> [2, degree]."""
        ring = lattice()
        plain = seal.Plaintext()
        self._decryptor.decrypt(ring.ciphertext(ring.sent.values(pairs), ring.sent_level), plain)
        data = plain.to_bytes(seal.compr_mode_type.none)[-8 * 2 * DEGREE :]
        return ring.sent.coefficients(np.frombuffer(data, dtype=np.uint64).reshape(2, DEGREE))


class LatticePublic:
    """The public part of somebody else's key. Errors: HomomorphicError for bytes that are none."""

    def __init__(self, data: Buffer) -> None:
        ring = lattice()
        if len(data) != PUBLIC_BYTES:
            raise HomomorphicError(f"public key: {len(data)} bytes instead of {PUBLIC_BYTES}; both need one version")
        values = unsealed(data, 0, 1 + MOST_MERGES * DATA_PRIMES, "public key")
        form = ring.ciphertext_form(values[0], ring.key_level)
        self.encryptor = seal.Encryptor(ring.narrow, ring.narrow.from_public_str(form))
        keys = values[1:].reshape(MOST_MERGES, DATA_PRIMES, 2, ALL_PRIMES, DEGREE)
        self.merging = Merging(ring.all, list(keys))


def unsealed(data: Buffer, first: int, count: int, what: str) -> Words:
    """So many ciphertexts from number `first` on of some that lie one after the other -> [count, 2, primes, degree].
    Errors: HomomorphicError."""
    ring, view = lattice(), memoryview(data)[first * CIPHERTEXT_BYTES : (first + count) * CIPHERTEXT_BYTES]
    if len(view) != count * CIPHERTEXT_BYTES:
        raise HomomorphicError(f"{what}: is shorter than its parameters say; both need one version")
    out = np.empty((count, 2, ALL_PRIMES, DEGREE), dtype=np.uint64)
    for number, pair in enumerate(out):
        one = view[number * CIPHERTEXT_BYTES :][:CIPHERTEXT_BYTES]
        unpacked_residues(one[SEED_BYTES:], _BITS, pair[0])
        if bool((pair[0] >= np.array(ring.primes, dtype=np.uint64)[:, None]).any()):
            raise HomomorphicError(f"{what}: is of other parameters; both need one version")
        pair[1] = uniform(bytes(one[:SEED_BYTES]), "second part", ring.primes, DEGREE)
    return out


def values_of(ciphertext: Any) -> Words:
    """A ciphertext's numbers [parts, primes, degree]."""
    shape = ciphertext.size(), ciphertext.coeff_modulus_size(), DEGREE
    form = ciphertext.to_string(seal.compr_mode_type.none)
    return np.frombuffer(form[-8 * shape[0] * shape[1] * DEGREE :], dtype=np.uint64).reshape(shape)


def random_words(count: int) -> Words:
    return np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64)


def random_below(bits: int, count: int, primes: tuple[int, ...]) -> Words:
    """Uniform integers from -2^(bits - 1) on, below 2^(bits - 1), modulo each prime -> [primes, count]; 64 < bits <=
    120."""
    above = random_words(count) >> np.uint64(128 - bits)
    return reduced(random_words(count), primes, above, less=1 << (bits - 1))


def _context(bits: tuple[int, ...], level: Any) -> Any:
    chosen = seal.EncryptionParameters(seal.scheme_type.ckks)
    chosen.set_poly_modulus_degree(DEGREE)
    chosen.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, bits))
    context = seal.SEALContext(chosen, True, level)
    if not context.parameters_set():
        raise HomomorphicError(f"SEAL refuses the parameters: {context.parameter_error_message()}")
    return context


def _primes(context: Any) -> tuple[int, ...]:
    return tuple(prime.value() for prime in context.key_context_data().parms().coeff_modulus())


def _id(parms_id: Any) -> bytes:
    return struct.pack("<4Q", *parms_id)


def _steps(element: int) -> int:
    """The rotation that SEAL makes by a Galois element: a power of 3."""
    return next(steps for steps in range(DEGREE // 2) if pow(3, steps, 2 * DEGREE) == element)
