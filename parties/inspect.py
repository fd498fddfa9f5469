"""What a compiled folder holds: its programs by layer with their price, and who is to know what of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..models.artifacts import ArtifactError
from ..models.artifacts.layout import find_part, parts_of, read_json, read_programs, versions
from ..models.pricing import price
from ..models.program import Program
from .report import Layer, layers


@dataclass
class Part:
    """One party's part. `bytes` on disk; `versions`: what wrote it."""

    folder: str
    bytes: int
    files: int
    format: int
    versions: dict[str, str]


@dataclass
class Priced:
    """A program of one length and the price of a query on it. Bytes are payload; `setup_bytes` is paid once."""

    length: int
    hash: str
    instructions: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    rounds: int
    up: int
    down: int
    online_bytes: int
    offline_bytes: int
    setup_bytes: int
    macs: int
    layers: list[Layer] = field(repr=False)

    def share(self, layer: Layer) -> float:
        """A layer's part of all bytes, online and offline."""
        total = self.online_bytes + self.offline_bytes
        return (layer.online_bytes + layer.offline_bytes) / total if total else 0.0


@dataclass
class Inspection:
    """`plan`: its name, where the part says it; `plan_hash` is in every program."""

    name: str
    kind: str
    plan: str
    plan_hash: str
    parts: dict[str, Part]
    lengths: dict[int, Priced]
    released: tuple[str, ...]
    public: str
    private: str

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for length, item in self.lengths.items():
            for row, layer in zip(found["lengths"][length]["layers"], item.layers, strict=True):
                row["share"] = item.share(layer)
        found["lengths"] = list(found["lengths"].values())
        return found


def inspect(folder: str | Path) -> Inspection:
    """Read and check every part in `folder` (DIR, or one part of it), and price its programs.

    Errors: ArtifactError for damage, and where the parts are of different compilations.
    """
    parts, programs, about = {}, {}, {}
    for name, path in parts_of(folder).items():
        part = find_part(path, name)
        parts[name] = _part(part)
        found = read_programs(part)
        if programs and found != programs:
            first = next(iter(parts))
            raise ArtifactError(
                f"{folder}: the {first}'s part and the {name}'s are of different compilations; compile again, or give "
                "both parties parts of one"
            )
        programs = found
        about |= _about(part, name)
    if not programs:
        raise ArtifactError(f"{folder}: holds no program; compile again")
    first = next(iter(programs.values()))
    return Inspection(
        name=first.model,
        kind=about.get("kind", ""),
        plan=about.get("plan", ""),
        plan_hash=first.plan,
        parts=parts,
        lengths={length: _priced(length, program) for length, program in programs.items()},
        released=tuple(sorted({name for program in programs.values() for name in program.released})),
        public="architecture, scales, constants of the approximations (fitted to calibrated ranges), lengths",
        private="all other weights, in DIR/server alone; secret.key there masks them for clients",
    )


def _part(part: Path) -> Part:
    found = versions(part)
    size = sum(file["bytes"] for file in found["files"].values())
    return Part(str(part), size, len(found["files"]), found["format"], found.get("versions", {}))


def _about(part: Path, name: str) -> dict[str, str]:
    """What a part says of the model beside its programs."""
    if name == "server":
        plan, model = read_json(part / "plan.json"), read_json(part / "model.json")
        return {"plan": plan["name"], "kind": model["kind"]}
    if name == "client":
        client = read_json(part / "client.json")
        return {"plan": client["plan"], "kind": client["kind"]}
    return {}


def _priced(length: int, program: Program) -> Priced:
    found = price(program)
    return Priced(
        length=length,
        hash=program.hash(),
        instructions=len(program.instructions),
        inputs=program.inputs,
        outputs={name: program.instructions[number].shape for name, number in program.outputs.items()},
        rounds=found.rounds,
        up=found.up,
        down=found.down,
        online_bytes=found.online_bytes,
        offline_bytes=found.offline_bytes,
        setup_bytes=found.setup_bytes,
        macs=found.macs,
        layers=layers(found),
    )
