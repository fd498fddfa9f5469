"""The client's side: keys, requests, answers. The secret key stays in this object; evaluation keys are the server's.

A decrypted result must not go back to the server: what CKKS leaves of its noise tells about the key (B. Li and
D. Micciancio, Eurocrypt 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tenseal.sealapi as seal  # pyright: ignore[reportMissingImports]

from .circuit import Ends
from .exact import packed
from .facts import PUBLIC, RELINEARISATION
from .parameters import CkksError, Parameters
from .sealed import SealedError, from_bytes, to_bytes

Array = np.ndarray


class SealContext:
    """SEAL's context for the parameters, and what both sides need of it. Errors: CkksError if SEAL refuses them."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, parameters.prime_bits))
        level = seal.SEC_LEVEL_TYPE.TC128 if parameters.secure else seal.SEC_LEVEL_TYPE.NONE
        self.context = seal.SEALContext(chosen, True, level)
        if not self.context.parameters_set():
            raise CkksError(f"N = {parameters.degree}: SEAL refuses it: {self.context.parameters_error_message()}")
        self.encoder = seal.CKKSEncoder(self.context)
        self.primes = [prime.value() for prime in chosen.coeff_modulus()]
        # Without the switching prime; level k is left after levels - k rescales.
        self.ids: list[Any] = [self.context.first_parms_id()]
        while len(self.ids) <= parameters.levels:
            self.ids.append(self.context.get_context_data(self.ids[-1]).next_context_data().parms_id())

    def prime(self, depth: int) -> int:
        """The prime that a rescale at this depth divides by."""
        return self.primes[self.parameters.levels - depth]

    def encode(self, values: Array, scale: float, depth: int) -> Any:
        plain = seal.Plaintext()
        self.encoder.encode(values.tolist(), self.ids[depth], scale, plain)
        return plain

    def checked(self, ciphertext: Any, depth: int, what: str, spread: float = 2.0) -> Any:
        """A ciphertext from outside, if it is one of two parts of this depth, and of the parameters' scale but for a
        factor up to `spread`. Errors: SealedError."""
        away = ciphertext.scale / self.parameters.scale
        good = ciphertext.size() == 2 and ciphertext.is_ntt_form() and not ciphertext.is_transparent()
        if not good or ciphertext.parms_id() != self.ids[depth] or not 1 / spread <= away <= spread:
            raise SealedError(f"{what}: is a ciphertext of another level or scale")
        return ciphertext

    def element(self, steps: int) -> int:
        """The Galois element of a rotation to the left."""
        return self.parameters.element(steps)


@dataclass(frozen=True)
class EvaluationKeys:
    """What the server computes with: it decrypts nothing. `public`: for computing.py; `galois`: by Galois element."""

    relinearise: Any
    public: Any
    galois: Mapping[int, Any]


class ClientKeys:
    """One client's keys for one circuit: only the rotations that it needs.

    secret   what `secret_bytes` gave, to go on with the same keys (default: new ones)
    """

    def __init__(self, ends: Ends, parameters: Parameters, secret: bytes | None = None) -> None:
        self.ends, self.ring = ends, SealContext(parameters)
        if secret is None:
            self._secret = seal.KeyGenerator(self.ring.context).secret_key()
        else:
            self._secret = from_bytes(seal.SecretKey, self.ring.context, secret, "the secret key")

    @property
    def elements(self) -> list[int]:
        """The Galois elements of the rotations, sorted."""
        return sorted(self.ring.element(steps) for steps in self.ends.rotations)

    @cached_property
    def evaluation(self) -> EvaluationKeys:
        """The server's, for one in this process."""
        generator, relinearise = self._generator(), seal.RelinKeys()
        generator.create_relin_keys(relinearise)
        galois = {}
        for element in self.elements:
            galois[element] = seal.GaloisKeys()
            generator.create_galois_keys([element], galois[element])
        return EvaluationKeys(relinearise, self._public(generator), galois)

    def sealed_evaluation(self) -> Iterator[bytes]:
        """The same, one by one, in the order of Facts.key_items: made anew, half of each but the public key a seed."""
        generator = self._generator()
        yield to_bytes(generator.create_relin_keys())
        yield to_bytes(self._public(generator))
        for element in self.elements:
            yield to_bytes(generator.create_galois_keys([element]))

    def secret_bytes(self) -> bytes:
        """The secret key. For a file that only its owner can read, and for nothing else."""
        return to_bytes(self._secret)

    @staticmethod
    def _public(generator: Any) -> Any:
        public_key = seal.PublicKey()
        generator.create_public_key(public_key)
        return public_key

    def _generator(self) -> Any:
        return seal.KeyGenerator(self.ring.context, self._secret)

    def encrypt(self, values: Mapping[str, Array]) -> dict[int, Any]:
        """The client's values, real, by the program's names -> ciphertexts by number."""
        encryptor, ciphertexts = self._encryptor(), {}
        for number, plain in self._plain(values):
            ciphertexts[number] = seal.Ciphertext()
            encryptor.encrypt_symmetric(plain, ciphertexts[number])
        return ciphertexts

    def sealed_request(self, values: Mapping[str, Array]) -> Iterator[bytes]:
        """The same as bytes, in the order of Facts.request_items: fresh, so that half of each is a seed."""
        encryptor = self._encryptor()
        for _, plain in self._plain(values):
            yield to_bytes(encryptor.encrypt_symmetric(plain))

    def _encryptor(self) -> Any:
        return seal.Encryptor(self.ring.context, self._secret)

    def _plain(self, values: Mapping[str, Array]) -> Iterator[tuple[int, Any]]:
        """What is encrypted, by number of its ciphertext."""
        for number, slots in packed(self.ends, values).items():
            yield number, self.ring.encode(slots, self.ring.parameters.scale, self.ends.depth[number])

    def decrypt(self, answers: Mapping[int, Any]) -> dict[str, Array]:
        """Ciphertexts by number -> results by name, real. What is no answer decrypts to huge numbers."""
        results = {}
        for output in self.ends.outputs:
            rows = self.slots({number: answers[number] for number in output.ciphertexts})
            results[output.name] = output.layout.collect(np.real(list(rows.values()))).reshape(output.shape)
        return results

    def slots(self, ciphertexts: Mapping[int, Any]) -> dict[int, Array]:
        """What each holds, complex [slots]: what is meant is the real part, noise is in both."""
        decryptor, by_number = seal.Decryptor(self.ring.context, self._secret), {}
        for number, ciphertext in ciphertexts.items():
            plain = seal.Plaintext()
            decryptor.decrypt(ciphertext, plain)
            by_number[number] = np.array(self.ring.encoder.decode_complex(plain))
        return by_number

    def open_reply(self, sealed: Mapping[int, bytes]) -> dict[str, Array]:
        """A reply's bytes by number (frames.unpack) -> results by name. Errors: SealedError."""
        answers = {
            number: from_bytes(seal.Ciphertext, self.ring.context, data, "the answer")
            for number, data in sealed.items()
        }
        return self.decrypt({n: self.ring.checked(x, self.ends.depth[n], "the answer") for n, x in answers.items()})


def load_evaluation(ring: SealContext, sealed: Iterable[tuple[int, bytes]]) -> EvaluationKeys:
    """A client's evaluation keys from (number, bytes), one after the other, numbered as Facts.key_items are.

    Errors: SealedError.
    """
    loaded: dict[int, Any] = {}
    for number, data in sealed:
        what = {RELINEARISATION: "relinearisation key", PUBLIC: "public key"}.get(number, f"rotation key {number}")
        kind = {RELINEARISATION: seal.RelinKeys, PUBLIC: seal.PublicKey}.get(number, seal.GaloisKeys)
        loaded[number] = key = from_bytes(kind, ring.context, data, what)
        if kind is seal.PublicKey:
            continue
        if key.size() != 1 or (kind is seal.GaloisKeys and not key.has_key(number)):
            raise SealedError(f"{what}: is the key of another rotation; make keys for this program")
    return EvaluationKeys(loaded.pop(RELINEARISATION), loaded.pop(PUBLIC), loaded)


def load_request(ring: SealContext, sealed: Mapping[int, bytes], depth: Mapping[int, int]) -> dict[int, Any]:
    """A request's ciphertexts from their bytes, each of its depth and exactly of the scale: encoded weights are kept
    by the scale that they meet. Errors: SealedError."""
    ciphertexts = {}
    for number, data in sealed.items():
        what = f"ciphertext {number}"
        ciphertext = from_bytes(seal.Ciphertext, ring.context, data, what)
        ciphertexts[number] = ring.checked(ciphertext, depth[number], what, spread=1.0)
    return ciphertexts
