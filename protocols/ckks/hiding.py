"""What a reply tells its client beyond the answer, made small.

The result of a circuit is a function of request and weights without any chance in it: whoever asks could compare it
with what other weights would give, bit by bit, and for a last layer solve equations for its weights. So the server
hides it:

- It adds a fresh encryption of zero under the client's public key. The ciphertext's second part is then uniform to a
  client that does not know the server's randomness (RLWE, at the parameters' security).
- What the client decrypts still holds the noise of the computation, which depends on the weights. The server adds
  Gaussian noise to every slot, to the real and the imaginary part, of deviation `DEVIATION`: the price, in the answer.

Noise of n bits more than the computation's hides it statistically: a reply's Kullback-Leibler divergence from one that
is made of the exact answer alone is at most slots / 2 * 4^-n (`divergence`), T replies of one client add up, and nobody
tells them apart with an advantage beyond sqrt(T * divergence / 2) (Pinsker). B. Li, D. Micciancio, M. Schultz and
J. Sorrell (CRYPTO 2022) count bits of security so. Without a bound proven for every request, n is a measurement
(docs/encrypted-queries.md). Both for clients that follow the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tenseal.sealapi as seal  # pyright: ignore[reportMissingImports]

from ..streams import gaussian
from .keys import EvaluationKeys, SealContext
from .parameters import DEVIATION


def hide(ring: SealContext, answers: Mapping[int, Any], keys: EvaluationKeys) -> dict[int, Any]:
    """A circuit's results, each under fresh randomness."""
    encryptor, evaluator, hidden = seal.Encryptor(ring.context, keys.public), seal.Evaluator(ring.context), {}
    for number, answer in answers.items():
        ciphertext, noise = seal.Ciphertext(), seal.Plaintext()
        encryptor.encrypt_zero(answer.parms_id(), ciphertext)
        ciphertext.scale = answer.scale
        evaluator.add_inplace(ciphertext, answer)
        drawn = DEVIATION * gaussian(2 * ring.parameters.slots).numpy()
        ring.encoder.encode(drawn.view(np.complex128).tolist(), answer.parms_id(), answer.scale, noise)
        evaluator.add_plain_inplace(ciphertext, noise)
        hidden[number] = ciphertext
    return hidden


def divergence(error: float, slots: int) -> float:
    """What a reply tells of the weights, in nats, at most. `error`: root of the mean square of its slots' errors."""
    return slots / 2 * (error / DEVIATION) ** 2
