"""A compiled model on ciphertexts: its circuit, what its client encrypts, and what an answer decrypts to.

`Encrypted` is client and server in this process, for trials and tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..protocols.base import find
from ..protocols.ckks.choosing import circuit_of, plan
from ..protocols.ckks.circuit import Circuit, CircuitStep
from ..protocols.ckks.exact import Exact
from ..protocols.ckks.facts import CircuitNeeds, facts_of
from ..protocols.ckks.parameters import CkksError, Parameters
from ..protocols.ring import RangeError, Ring
from .compile import AnswerOutOfRange, Compiled, decode_outputs
from .program.program import Program, check_offers

if TYPE_CHECKING:
    from ..protocols.ckks.evaluator import Evaluator

Chosen = tuple[Circuit, Parameters]


class Weighted(Protocol):
    """A compiled model, or the server's part of one."""

    @property
    def program(self) -> Program: ...
    @property
    def weights(self) -> dict[str, Tensor]: ...
    @property
    def constants(self) -> dict[str, Tensor]: ...


class Encrypted:
    """A model's circuit, one client's keys and the server's evaluator.

    chosen   a circuit and its parameters (default: `circuit_for`, at 128 bits)

    Errors: those of `circuit_for`; CkksError where TenSEAL is not installed.
    """

    def __init__(self, compiled: Compiled, chosen: Chosen | None = None) -> None:
        self.compiled = compiled
        self.circuit, self.parameters = chosen or circuit_for(compiled)
        self.evaluator = evaluator_of(self.circuit, self.parameters)
        from ..protocols.ckks.keys import ClientKeys

        self.keys = ClientKeys(self.circuit.ends(), self.parameters)

    def query(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's outputs, float32, by way of ciphertexts. Errors: AnswerOutOfRange."""
        values = real_values(self.compiled.program, self.compiled.encode_inputs(inputs))
        return self.decode(self.reply(self.keys.encrypt(values)))

    def reply(self, request: Mapping[int, Any], progress: Callable[[int, int], None] | None = None) -> dict[int, Any]:
        """What the server makes of a request's ciphertexts, by number: computed, and hidden (computing.py)."""
        from ..protocols.ckks.computing import hide

        answers = self.evaluator.run(request, self.keys.evaluation, progress)
        return hide(self.evaluator.ring, answers, self.keys.evaluation)

    def precision_by_layer(self, inputs: Mapping[str, Tensor]) -> list[LayerPrecision]:
        """What CKKS loses on the way, module by module, for one query. Takes a query's time.

        Every step's slots are decrypted and compared with those of the same circuit on real numbers: what is found in
        a module is the error of all that lies before it, too.
        """
        values = real_values(self.compiled.program, self.compiled.encode_inputs(inputs))
        exact, rows = Exact(self.circuit, values), []

        def watch(step: CircuitStep, ciphertexts: Mapping[int, Any]) -> None:
            exact.step(step)
            slots = self.keys.slots({number: ciphertexts[number] for number in step.results})
            error = max(float(np.abs(slots[n] - exact.held[n]).max()) for n in step.results)
            size = max(float(np.abs(exact.held[n]).max()) for n in step.results)
            if rows and rows[-1].path == step.path:
                error, size = max(error, rows[-1].error), max(size, rows.pop().size)
            rows.append(LayerPrecision(step.path, step.work + 1, error, size))

        self.evaluator.run(self.keys.encrypt(values), self.keys.evaluation, watch=watch)
        return rows

    def decode(self, answers: Mapping[int, Any]) -> dict[str, Tensor]:
        """The answers' ciphertexts, decrypted. One that decrypts outside its range is an error and no answer."""
        return decode_real(self.compiled.program, self.keys.decrypt(answers))


@dataclass(frozen=True)
class LayerPrecision:
    """levels: used up by the end of the module; error, size: the largest of its slots', absolute."""

    path: str
    levels: int
    error: float
    size: float

    @property
    def bits(self) -> float:
        """Of the largest value that are right."""
        return math.log2(max(self.size, 1e-300) / max(self.error, 1e-300))


def evaluator_of(circuit: Circuit, parameters: Parameters, **options: int) -> Evaluator:
    """`options`: of Evaluator. Errors: CkksError, also where TenSEAL is not installed."""
    try:
        from ..protocols.ckks.evaluator import Evaluator
    except ImportError as error:
        raise CkksError(f"protocol ckks: {error.name} is missing; run: pip install 'blindformer[he]'") from None
    return Evaluator(circuit, parameters, **options)


def decode_real(program: Program, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """What was decrypted, by output name -> the model's outputs, float32. Errors: AnswerOutOfRange."""
    ring, reals = Ring(), {}
    for name, value in values.items():
        try:
            scale = program.instructions[program.outputs[name]].scale
            reals[name] = ring.encode(torch.from_numpy(value), scale, name)
        except RangeError:
            raise AnswerOutOfRange(
                f"{name}: the answer does not decrypt to anything in range; ask with the keys it was made for"
            ) from None
    return decode_outputs(program, reals)


def can_be_encrypted(program: Program) -> bool:
    """Whether `ckks` offers every operation of a program."""
    return program.needs() <= set(find("ckks").supported_operations)


def circuit_for(compiled: Weighted) -> Chosen:
    """The circuit of a compiled model, and parameters at 128 bits in the least ring that holds it.

    Errors: ProgramError for another plan's program, TooDeep, CkksError.
    """
    check_offers(compiled.program, find("ckks"))
    program = compiled.program
    return plan(program.instructions, program.outputs, _known(compiled), program.client)


def circuit_in(compiled: Weighted, facts: CircuitNeeds) -> Circuit:
    """The circuit that `facts` describe, planned again. Errors: CkksError if it is another one."""
    program, slots = compiled.program, facts.parameters.slots
    circuit = circuit_of(program.instructions, program.outputs, _known(compiled), program.client, slots)
    if facts_of(program.hash(), facts.texts, circuit, facts.parameters) != facts:
        raise CkksError("the folder describes another circuit than this version plans; compile again")
    return circuit


def _known(compiled: Weighted) -> dict[str, Any]:
    return real_values(compiled.program, {**compiled.weights, **compiled.constants})


def real_values(program: Program, integers: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sources' ring integers by name -> the real numbers that they stand for, numpy."""
    sources = ("client", "weight", "constant")
    scales = {x.attributes["name"]: x.scale for x in program.instructions if x.op in sources}
    return {name: (value.double() * 2.0 ** -scales[name]).numpy() for name, value in integers.items()}
