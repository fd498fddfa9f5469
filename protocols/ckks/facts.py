"""What both sides know of a circuit without its weights: parameters, rotations, and every size that travels.

A process that only checks and hands on bytes needs no more, and no TenSEAL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .circuit import Circuit, Ends, Input, Output
from .parameters import CkksError, Parameters
from .sealed import ciphertext_bytes, most_bytes, relinearisation_bytes, rotation_bytes

RELINEARISATION, PUBLIC = 0, 1  # numbers of keys that are no rotation's: a Galois element is 3 or more


@dataclass(frozen=True)
class Item:
    """One object of a message: its number (a ciphertext's, a Galois element), and its bytes once inflated."""

    number: int
    inner: int
    what: str

    @property
    def most(self) -> int:
        return most_bytes(self.inner)


@dataclass(frozen=True)
class CircuitNeeds:
    """`elements`: Galois elements, sorted. `inputs`, `outputs`: depth by ciphertext. `steps`: modules, in order."""

    program: str
    parameters: Parameters
    texts: int
    elements: tuple[int, ...]
    inputs: Mapping[int, int]
    outputs: Mapping[int, int]
    steps: tuple[str, ...] = field(default=(), repr=False)

    def key_items(self) -> list[Item]:
        """What a client uploads once."""
        degree, levels = self.parameters.degree, self.parameters.levels
        first = Item(RELINEARISATION, relinearisation_bytes(degree, levels), "relinearisation key")
        public = Item(PUBLIC, ciphertext_bytes(degree, levels + 2, seeded=False), "public key")
        size = rotation_bytes(degree, levels)
        return [first, public, *(Item(element, size, f"rotation key {element}") for element in self.elements)]

    def request_items(self) -> list[Item]:
        return [self._ciphertext(number, depth, True) for number, depth in self.inputs.items()]

    def reply_items(self) -> list[Item]:
        return [self._ciphertext(number, depth, False) for number, depth in self.outputs.items()]

    def key_memory(self) -> int:
        """Bytes of the evaluation keys where they are computed with: SEAL draws the seeded halves then."""
        part = 8 * self.parameters.degree * (self.parameters.levels + 2)
        return 2 * part * (1 + (self.parameters.levels + 1) * (1 + len(self.elements)))

    def _ciphertext(self, number: int, depth: int, fresh: bool) -> Item:
        primes = self.parameters.levels + 1 - depth
        return Item(number, ciphertext_bytes(self.parameters.degree, primes, fresh), f"ciphertext {number}")

    def hash(self) -> str:
        """SHA-256, hex: who has the same program and circuit has the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "elements": list(self.elements),
            "inputs": [[number, depth] for number, depth in self.inputs.items()],
            "outputs": [[number, depth] for number, depth in self.outputs.items()],
            "steps": list(self.steps),
        }


def most(items: Iterable[Item]) -> int:
    """The most bytes that these can be."""
    return sum(item.most for item in items)


def facts_of(program: str, texts: int, circuit: Circuit, parameters: Parameters) -> CircuitNeeds:
    """`program`: the hash of the circuit's program."""
    ends = circuit.ends()
    return CircuitNeeds(
        program,
        parameters,
        texts,
        tuple(sorted(parameters.element(steps) for steps in ends.rotations)),
        _depths(ends.inputs, ends),
        _depths(ends.outputs, ends),
        tuple(step.path for step in circuit.steps),
    )


def _depths(sides: Sequence[Input] | Sequence[Output], ends: Ends) -> dict[int, int]:
    return {number: ends.depth[number] for side in sides for number in side.ciphertexts}


def facts_from(document: Mapping[str, Any], *, secure: bool = True) -> CircuitNeeds:
    """The facts in what `to_json` gave. `secure`: refuse parameters that are not held to 128 bits.

    Errors: CkksError for what is none.
    """
    try:
        given = document["parameters"]
        parameters = Parameters(
            int(given["degree"]), int(given["scale_bits"]), int(given["levels"]), given["secure"] is not False
        )
        facts = CircuitNeeds(
            str(document["program"]),
            parameters,
            int(document["texts"]),
            tuple(sorted(int(element) for element in document["elements"])),
            {int(number): int(depth) for number, depth in document["inputs"]},
            {int(number): int(depth) for number, depth in document["outputs"]},
            tuple(str(step) for step in document["steps"]),
        )
    except (KeyError, TypeError, ValueError):
        raise CkksError("a description of encrypted queries is damaged; compile again") from None
    if secure and not parameters.secure:
        raise CkksError(f"N = {parameters.degree}: parameters that are not held to 128 bits are for tests alone")
    depths = (*facts.inputs.values(), *facts.outputs.values())
    if not all(0 <= depth <= parameters.levels for depth in depths) or len(facts.elements) > parameters.slots:
        raise CkksError("a description of encrypted queries is damaged; compile again")
    return facts
