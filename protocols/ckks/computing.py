"""One client's evaluation keys and requests, in the process that reads them (isolated.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tenseal.sealapi as seal  # pyright: ignore[reportMissingImports]

from ..errors import BlindformerError
from ..streams import gaussian
from .facts import CircuitNeeds
from .isolated import Say, pack, unpack
from .keys import EvaluationKeys, SealContext, load_evaluation, load_request
from .parameters import DEVIATION, CkksError
from .sealed import SealedError, to_bytes

if TYPE_CHECKING:
    from .evaluator import Evaluator


class Computing:
    """Keys lie in `folder`, by number, until the first request. It says {"step": n} after each step of the circuit,
    and at last {"seconds": s} with the answer; or why there is none, {"refused": why} or {"failed": why}."""

    def __init__(self, facts: CircuitNeeds, evaluator: Evaluator, folder: Path) -> None:
        self.facts, self.evaluator, self.folder = facts, evaluator, folder
        self._keys: EvaluationKeys | None = None

    def __call__(self, request: bytes, say: Say) -> bytes:
        try:
            return self._answer(unpack(request)[1], lambda head: say(pack(head)))
        except SealedError as error:
            return pack({"refused": str(error)})
        except BlindformerError as error:
            return pack({"failed": str(error)})

    def _answer(self, sealed: Sequence[bytes], say: Callable[[dict[str, Any]], None]) -> bytes:
        facts, evaluator, keys = self.facts, self.evaluator, self._load()
        inputs = load_request(evaluator.ring, dict(zip(facts.inputs, sealed, strict=True)), facts.inputs)
        started = time.perf_counter()
        answers = evaluator.run(inputs, keys, lambda done, total: say({"step": done}))
        hidden = hide(evaluator.ring, answers, keys)
        reply = [to_bytes(hidden[item.number]) for item in facts.reply_items()]
        return pack({"seconds": time.perf_counter() - started}, reply)

    def _load(self) -> EvaluationKeys:
        if self._keys is None:
            items = self.facts.key_items()
            sealed = ((item.number, (self.folder / str(item.number)).read_bytes()) for item in items)
            try:
                self._keys = load_evaluation(self.evaluator.ring, sealed)
            except OSError:
                raise CkksError("the keys are gone; send them again") from None
        return self._keys


# What a reply tells its client beyond the answer, made small.
#
# The result of a circuit is a function of request and weights without any chance in it: whoever asks could compare it
# with what other weights would give, bit by bit, and for a last layer solve equations for its weights. So the server
# hides it:
#
# - It adds a fresh encryption of zero under the client's public key. The ciphertext's second part is then uniform to a
#   client that does not know the server's randomness (RLWE, at the parameters' security).
# - What the client decrypts still holds the noise of the computation, which depends on the weights. The server adds
#   Gaussian noise to every slot, to the real and the imaginary part, of deviation
#   `DEVIATION`: the price, in the answer.
#
# Noise of n bits more than the computation's hides it statistically: a reply's Kullback-Leibler divergence from one
# that is made of the exact answer alone is at most slots / 2 * 4^-n (`divergence`), T replies of one client add up, and
# nobody tells them apart with an advantage beyond sqrt(T * divergence / 2) (Pinsker). B. Li, D. Micciancio, M. Schultz
# and J. Sorrell (CRYPTO 2022) count bits of security so. Without a bound proven for every request, n is a measurement
# (docs/encrypted-queries.md). Both for clients that follow the protocol.


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
