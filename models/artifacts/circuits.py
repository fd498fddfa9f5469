"""The circuit of a program on disk: what a client needs of it, and what the server's own plan is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...protocols.ckks.circuit import Circuit, Ends, Input, Output
from ...protocols.ckks.facts import CircuitNeeds, facts_from, facts_of
from ...protocols.ckks.packing import Layout
from ...protocols.ckks.parameters import CkksError
from ..encrypted import Chosen
from ..program.program import Program
from .layout import ArtifactError, length_folder, read_json

FILE = "circuit.json"


@dataclass
class CircuitPart:
    """`levels`: (module, levels in it, levels after it), in order. `stride`, `lanes`: how texts lie in a ciphertext."""

    facts: CircuitNeeds
    levels: list[tuple[str, int, int]]
    lanes: int
    stride: int
    ends: Ends | None = field(default=None, repr=False)


def described(program: Program, chosen: Chosen) -> dict[str, Any]:
    """What lies in circuit.json."""
    circuit, parameters = chosen
    return {
        "facts": facts_of(program.hash(), texts_of(program), circuit, parameters).to_json(),
        "levels": circuit.by_path(),
        "lanes": circuit.packing.lanes,
        "stride": circuit.packing.stride,
        "rotations": circuit.rotations(),
        "inputs": [{"name": item.name, "ciphertexts": item.ciphertexts} for item in circuit.inputs],
        "outputs": [
            {"name": item.name, "shape": item.shape, "scale": item.scale, "ciphertexts": item.ciphertexts}
            for item in circuit.outputs
        ],
    }


def layouts(circuit: Circuit) -> dict[str, Tensor]:
    """Where elements lie in the slots, by name: integers, for the client alone."""
    tensors = {}
    for side, items in (("input", circuit.inputs), ("output", circuit.outputs)):
        for number, item in enumerate(items):
            tensors[f"{side}.{number}.block"] = torch.from_numpy(item.layout.block.copy())
            tensors[f"{side}.{number}.slot"] = torch.from_numpy(item.layout.slot.copy())
    for number, item in enumerate(circuit.inputs):
        tensors[f"input.{number}.at"] = torch.from_numpy(item.at.copy())
    return tensors


def read_circuit(part: Path, length: int, tensors: Mapping[str, Tensor] | None = None) -> CircuitPart | None:
    """The circuit of a length; None if it was not compiled for encrypted queries. `tensors`: of `layouts`.

    Errors: ArtifactError.
    """
    file = length_folder(part, length) / FILE
    if not file.exists():
        return None
    document = read_json(file)
    try:
        facts = facts_from(document["facts"], secure=False)
        levels = [(str(path), int(own), int(after)) for path, own, after in document["levels"]]
        ends = None if tensors is None else _ends(document, facts, tensors)
        return CircuitPart(facts, levels, int(document["lanes"]), int(document["stride"]), ends)
    except (KeyError, TypeError, ValueError, IndexError, CkksError):
        raise ArtifactError(f"{file}: is damaged; copy the part again, or compile again") from None


def _ends(document: Mapping[str, Any], facts: CircuitNeeds, tensors: Mapping[str, Tensor]) -> Ends:
    slots = facts.parameters.slots

    def layout(name: str, item: Mapping[str, Any]) -> Layout:
        block, slot = tensors[f"{name}.block"].numpy(), tensors[f"{name}.slot"].numpy()
        return Layout(slots, block, slot, len(item["ciphertexts"]))

    inputs = [
        Input(item["name"], tensors[f"input.{n}.at"].numpy(), layout(f"input.{n}", item), list(item["ciphertexts"]))
        for n, item in enumerate(document["inputs"])
    ]
    outputs = [
        Output(item["name"], tuple(item["shape"]), layout(f"output.{n}", item), list(item["ciphertexts"]),
               int(item["scale"]))
        for n, item in enumerate(document["outputs"])
    ]  # fmt: skip
    return Ends(inputs, outputs, {**facts.inputs, **facts.outputs}, [int(steps) for steps in document["rotations"]])


def texts_of(program: Program) -> int:
    """Texts (or images) that one query of a program takes."""
    return next((shape[0] for shape in program.inputs.values() if shape), 1)
