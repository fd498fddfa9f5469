"""The client's side: keys, requests, answers. The secret key stays in this object; evaluation keys are the server's.

A decrypted result must not go back to the server: what CKKS leaves of its noise tells about the key (B. Li and
D. Micciancio, Eurocrypt 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tenseal.sealapi as seal  # pyright: ignore[reportMissingImports]

from .circuit import Circuit
from .exact import packed
from .parameters import CkksError, Parameters

Array = np.ndarray


class Ring:
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

    def element(self, steps: int) -> int:
        """The Galois element of a rotation to the left."""
        return pow(3, steps % self.parameters.slots, 2 * self.parameters.degree)


@dataclass(frozen=True)
class EvaluationKeys:
    """What the server computes with: it decrypts nothing."""

    relinearise: Any
    galois: Any


class ClientKeys:
    """One client's keys for one circuit: only the rotations that it needs."""

    def __init__(self, circuit: Circuit, parameters: Parameters) -> None:
        self.circuit, self.ring = circuit, Ring(parameters)
        generator = seal.KeyGenerator(self.ring.context)
        self._secret = generator.secret_key()
        relinearise, galois = seal.RelinKeys(), seal.GaloisKeys()
        generator.create_relin_keys(relinearise)
        generator.create_galois_keys([self.ring.element(r) for r in circuit.rotations()], galois)
        self.evaluation = EvaluationKeys(relinearise, galois)

    def encrypt(self, values: Mapping[str, Array]) -> dict[int, Any]:
        """The client's values, real, by the program's names -> ciphertexts by number."""
        encryptor = seal.Encryptor(self.ring.context, self._secret)
        found = {}
        for number, slots in packed(self.circuit, values).items():
            plain = self.ring.encode(slots, self.ring.parameters.scale, self.circuit.depth[number])
            found[number] = seal.Ciphertext()
            encryptor.encrypt_symmetric(plain, found[number])
        return found

    def decrypt(self, answers: Mapping[int, Any]) -> dict[str, Array]:
        """Ciphertexts by number -> results by name, real. What is no answer decrypts to huge numbers."""
        results = {}
        for output in self.circuit.outputs:
            rows = self.slots({number: answers[number] for number in output.ciphertexts})
            results[output.name] = output.layout.collect(np.array(list(rows.values()))).reshape(output.shape)
        return results

    def slots(self, ciphertexts: Mapping[int, Any]) -> dict[int, Array]:
        """What each holds, [slots]."""
        decryptor, found = seal.Decryptor(self.ring.context, self._secret), {}
        for number, ciphertext in ciphertexts.items():
            plain = seal.Plaintext()
            decryptor.decrypt(ciphertext, plain)
            found[number] = np.array(self.ring.encoder.decode_double(plain))
        return found
