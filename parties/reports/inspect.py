"""What a compiled folder holds: its programs by layer with their price, who may know what of it, and how precise its
encrypted queries are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...approximations.registry import A_ROUND
from ...models.artifacts import ArtifactError, CircuitPart, load_client, load_server
from ...models.artifacts.circuits import read_circuit
from ...models.artifacts.client import together
from ...models.artifacts.layout import find_part, only, parts_of, read_json, read_programs, versions
from ...models.artifacts.server import compiled_of
from ...models.encrypted import Encrypted, LayerPrecision, circuit_in
from ...models.generation.parts import size_of, source_parts
from ...models.generation.rows import behind, room, window
from ...models.loading.calibration_texts import calibration_texts
from ...models.program.pricing import Layer, QueryPrice, price
from ...models.program.program import Program
from ...protocols.ckks.facts import facts_from, most


@dataclass
class FolderPart:
    """One party's part. `bytes` on disk; `versions`: what wrote it."""

    folder: str
    bytes: int
    files: int
    format: int
    versions: dict[str, str]


@dataclass
class CircuitSizes:
    """Encrypted queries of one length. Bytes are the most that can travel; SEAL's compression saves a quarter or so.

    `levels`: (module, levels used in it, levels used after it), in order.
    """

    degree: int
    scale_bits: int
    texts: int
    depth: int
    rotations: int
    key_bytes: int
    key_memory_bytes: int
    request_bytes: int
    reply_bytes: int
    levels: list[tuple[str, int, int]] = field(repr=False)


@dataclass(kw_only=True)
class PricedProgram(QueryPrice):
    """A program of one length and the price of a query on it. `behind`: of a pass of a conversation, how many tokens it
    may come behind."""

    length: int
    behind: int | None
    hash: str
    instructions: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    circuit: CircuitSizes | None = None

    def share(self, layer: Layer) -> float:
        """A layer's part of all bytes, online and offline."""
        total = self.online_bytes + self.offline_bytes
        return (layer.online_bytes + layer.offline_bytes) / total if total else 0.0


@dataclass
class Inspection:
    """`plan`: its name, where the part says it; `plan_hash` is in every program. `a_round`: what the plan takes a round
    to be worth, as numbers of the dealer's; 0 where no part says it. `slots`: tokens of a conversation, of which the
    length of each of `programs` is a pass; `window`: how many of the last a pass reads, 0: all. `released`: parameters
    that clients have; `public_weights`: those that every computing party has."""

    name: str
    kind: str
    plan: str
    plan_hash: str
    parts: dict[str, FolderPart]
    programs: list[PricedProgram]
    released: tuple[str, ...]
    public_weights: tuple[str, ...]
    public: str
    private: str
    a_round: float = 0.0
    slots: int = 0
    window: int = 0

    def to_dict(self) -> dict[str, Any]:
        report = asdict(self)
        report["lengths"] = report.pop("programs")
        for program, item in zip(report["lengths"], self.programs, strict=True):
            for row, one in zip(program["layers"] + program["operations"], item.layers + item.operations, strict=True):
                row["share"] = item.share(one)
        return report

    def of_length(self, length: int, folder: Path) -> list[PricedProgram]:
        """Errors: ArtifactError, naming the folder and what there is."""
        only({item.length: item for item in self.programs}, length, folder)
        return [item for item in self.programs if item.length == length]


def inspect(folder: str | Path) -> Inspection:
    """Read and check every part in `folder` (DIR, or one part of it), and price its programs.

    Errors: ArtifactError for damage, and where the parts are of different compilations.
    """
    parts, programs, about, circuits = {}, {}, {}, {}
    for name, path in parts_of(folder).items():
        part = find_part(path, name)
        parts[name] = _part(part)
        own = read_programs(part)
        if programs and own != programs:
            first = next(iter(parts))
            raise ArtifactError(
                f"{folder}: {first} and {name} are of different compilations; compile again, or give parts of one"
            )
        programs = own
        about |= _about(part, name)
        circuits |= {length: read_circuit(part, length) for length in programs if name != "helper"}
    if not programs:
        raise ArtifactError(f"{folder}: holds no program; compile again")
    first = next(iter(programs.values()))
    if first.parts:
        sources = [_priced(length, None, first.part(name)) for length, name in source_parts(first.parts).items()]
        read = ((name, part) for name, part in first.parts.items() if size_of(name))
        passes = [(size_of(name), behind(first, name), part) for name, part in read]
        listed = [*sources, *(_priced(*one) for one in sorted(passes, key=lambda one: one[:2]))]
    else:
        listed = [_priced(length, None, program, circuits.get(length)) for length, program in programs.items()]
    return Inspection(
        name=first.model,
        kind=about.get("kind", ""),
        plan=about.get("plan", ""),
        plan_hash=first.plan,
        a_round=about.get("a_round", 0.0),
        parts=parts,
        programs=listed,
        released=tuple(sorted({name for program in programs.values() for name in program.all_released()})),
        public_weights=tuple(sorted({name for program in programs.values() for name in program.all_public()})),
        public="architecture, scales, constants of the approximations (fitted to calibrated ranges), lengths",
        private="all other weights, in DIR/server alone; secret.key there masks them for clients",
        slots=room(first),
        window=window(first),
    )


def _part(part: Path) -> FolderPart:
    about = versions(part)
    size = sum(file["bytes"] for file in about["files"].values())
    return FolderPart(str(part), size, len(about["files"]), about["format"], about.get("versions", {}))


def _about(part: Path, name: str) -> dict[str, Any]:
    """The facts of the model in a part, beside its programs."""
    if name == "server":
        plan, model = read_json(part / "plan.json"), read_json(part / "model.json")
        return {"plan": plan["name"], "a_round": plan.get("a_round", A_ROUND), "kind": model["kind"]}
    if name == "client":
        client = read_json(part / "client.json")
        return {"plan": client["plan"], "kind": client["kind"]}
    return {}


def _sizes(circuit: CircuitPart) -> CircuitSizes:
    facts = circuit.facts
    return CircuitSizes(
        degree=facts.parameters.degree,
        scale_bits=facts.parameters.scale_bits,
        texts=facts.texts,
        depth=facts.parameters.levels,
        rotations=len(facts.elements),
        key_bytes=most(facts.key_items()),
        key_memory_bytes=facts.key_memory(),
        request_bytes=most(facts.request_items()),
        reply_bytes=most(facts.reply_items()),
        levels=circuit.levels,
    )


def _priced(length: int, behind: int | None, program: Program, circuit: CircuitPart | None = None) -> PricedProgram:
    return PricedProgram(
        length=length,
        behind=behind,
        hash=program.hash(),
        instructions=len(program.instructions),
        inputs=program.inputs,
        outputs={name: program.instructions[number].shape for name, number in program.outputs.items()},
        **vars(price(program)),
        circuit=None if circuit is None else _sizes(circuit),
    )


def precision(
    folder: str | Path, length: int | None = None, texts: list[str] | None = None, *, any_ring: bool = False
) -> list[LayerPrecision]:
    """How much each layer of an encrypted query loses, measured here on typical texts: for one length of a compiled
    folder with both parts. `texts`: as many as a query takes are used (default: typical ones). `any_ring`: FOR TESTS
    ALONE.

    Errors: ArtifactError, CkksError, InputError.
    """
    client, server = load_client(folder), load_server(folder)
    length = None if client.talks else length
    own, part = client.for_length(length), server.for_length(length)
    if part.circuit is None:
        raise ArtifactError(f"{folder}: is not compiled for encrypted queries; compile with a plan such as he")
    facts = facts_from(part.circuit.facts.to_json(), secure=not any_ring)
    number = next(number for number, item in client.lengths.items() if item is own)
    chosen = (texts or calibration_texts(own.texts))[: own.texts]
    questions = [client.encode(text, number, truncate=True) for text in client.task.typical(chosen)]
    encrypted = Encrypted(compiled_of(own, part, server.plan), (circuit_in(part, facts), facts.parameters))
    return encrypted.precision_by_layer(together(questions))
