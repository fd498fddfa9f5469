"""The same model for two servers: the data owner takes no part, a second server plays P1.

The two servers must not collude. What was P1's in the clear is now shared:

    client(name)                    input(name)            each party is sent an additive share
    mul_private(x, client's v)      mul(x, v)              v is opened under a mask, like any shared value
    reveal(to client)               reveal(to owner)       each party gives the owner a share of the result

Nothing else changes: shapes, scales and widths stay, since a product has the same scale and needs its arguments to the
same bits whoever knows them. So every party derives this program from the compiled one, and all agree on its hash.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...protocols.beaver.owner import Layout, layout_bytes
from ...protocols.operations import OWNER
from ...protocols.operations.reveal import RevealedRows, shape_of_rows
from ...protocols.streams import SEED_BYTES
from .program import Instruction, Program, ProgramError
from .widths import place_widths


def for_two_servers(program: Program) -> Program:
    """The program of the two servers; one that is theirs already stays as it is."""
    return program.model_copy(
        update={
            "instructions": tuple(_handed_over(item, program.instructions) for item in program.instructions),
            "parts": {name: for_two_servers(part) for name, part in program.parts.items()},
        }
    )


def _handed_over(item: Instruction, all_: tuple[Instruction, ...]) -> Instruction:
    if item.op == "client":
        return replace(item, op="input")
    if item.op == "mul_private" and all_[item.args[1]].op == "client":
        return replace(item, op="mul")
    if item.op == "reveal":
        return replace(item, attributes={**item.attributes, "to": OWNER})
    return item


def for_audits(program: Program, rate: float) -> Program:
    """The program of a server and a client that it audits (parties/session/audits.py): the client takes P1's part, and
    is besides the owner of the values and of the results, which a run that is an audit does without. `rate`: the part
    of all runs that are audits. Errors: ProgramError if it keeps rows from run to run."""
    if program.parts or program.needs() & {"keep", "state"}:
        what = "keeps rows from run to run, of which an audit would reveal the masks"
        raise ProgramError(f"program {program.model}: {what}; leave audits out, or use topology helper")
    return for_two_servers(program).model_copy(update={"audits": rate})


def is_for_two_servers(program: Program) -> bool:
    """Whether the data owner takes no part in this program: it has results, and they go to the owner. A part that reads
    a source has none."""
    if program.audits:
        return False
    if program.parts:
        parts = [part for part in program.parts.values() if part.outputs]
        return bool(parts) and all(map(is_for_two_servers, parts))
    return len(answer_layout(program)) == len(program.outputs) > 0


def input_layout(program: Program) -> Layout:
    """Shape and width of what the owner splits, by name, in the program's order."""
    return {x.attributes["name"]: (x.shape, x.width) for x in program.instructions if x.op == "input"}


def answer_layout(program: Program, revealed: RevealedRows | None = None) -> Layout:
    """Shape and width of what each party gives back to the owner, by output name; `revealed`: of these rows alone."""
    reveals = {name: program.instructions[number] for name, number in program.outputs.items()}
    return {
        name: (shape_of_rows(x.shape, revealed), x.width)
        for name, x in reveals.items()
        if x.attributes.get("to") == OWNER
    }


@dataclass(frozen=True)
class OwnerTraffic:
    """Bytes of one query at the owner, payload only: to the server, to the helper, and back from each of them."""

    to_server: int
    to_helper: int
    from_each: int

    @property
    def total(self) -> int:
        return self.to_server + self.to_helper + 2 * self.from_each


def owner_traffic(program: Program) -> OwnerTraffic:
    return OwnerTraffic(layout_bytes(input_layout(program)), SEED_BYTES, layout_bytes(answer_layout(program)))


@dataclass(frozen=True)
class AuditTraffic:
    """Payload of one run of a program with audits beside its rounds and corrections: the client's masked values, the
    server's share of the answer, which an audit has none of, and the audit token (parties/session/audits.py)."""

    values: int
    answer: int
    audit_token: int


def audit_traffic(program: Program) -> AuditTraffic:
    """Nothing for a program without audits."""
    if not program.audits:
        return AuditTraffic(0, 0, 0)
    values = layout_bytes(input_layout(program))
    return AuditTraffic(values, layout_bytes(answer_layout(program)), 1 + max(SEED_BYTES, values))


# A Program between other computations: shares come in and go out at one scale, as another framework holds them.
#
#     input(name)        at `bits` fractional bits, then a shift, or an exact rescale, to the Program's own scale
#     reveal(to owner)   of the whole ring, at `bits`: each party keeps a fresh share
#
# Such a Program has no prelude, since nobody knows its inputs. Every party derives the same one from what was compiled.

_ROOM = 62  # bits: a rescale takes values below 2^62


def with_shared_io(program: Program, bits: int) -> Program:
    """The same model on shares at `bits` fractional bits. Errors: ProgramError if an input is prepared in the clear."""
    if program.prelude:
        first = next(iter(program.inputs), "the input")
        raise ProgramError(
            f"{first}: its owner computes it in the clear ({program.prelude[0].target}); compile only what comes after"
        )
    out: list[Instruction] = []
    moved: dict[int, int] = {}
    sizes: dict[int, int] = {}  # bits of what a rescale reads, as compiled
    for number, item in enumerate(for_two_servers(program).instructions):
        item = replace(item, args=tuple(moved[arg] for arg in item.args))
        if item.op == "rescale":
            sizes[item.args[0]] = max(sizes.get(item.args[0], 0), item.attributes["ring"] - 1)
        if item.op == "reveal":
            # Its scale tells the result's: a factor of a power of two is only a change of scale (scales.py).
            source = replace(item, scale=item.scale + item.attributes.get("bits", 0))
            args = (_moved(out, source, item.args[0], bits),)
            item = replace(item, args=args, scale=bits, attributes={"to": OWNER})
        if item.op == "input":
            name = program.client[item.attributes["name"]]
            own = replace(item, scale=bits, attributes={**item.attributes, "name": name})
            out.append(own)
            moved[number] = _moved(out, own, len(out) - 1, item.scale)
        else:
            out.append(item)
            moved[number] = len(out) - 1
    outputs = {name: moved[number] for name, number in program.outputs.items()}
    placed = place_widths(out, sizes)
    return program.model_copy(update={"instructions": tuple(placed), "outputs": outputs, "client": {}, "released": ()})


def _moved(out: list[Instruction], like: Instruction, number: int, scale: int) -> int:
    """The value of this number, which is at the scale of `like`, at another one: up by a shift, down by a rescale."""
    change = scale - like.scale
    if not change:
        return number
    if like.bound * 2.0**like.scale >= 2.0**_ROOM:
        raise ProgramError(f"{like.path or 'program'}: a value is too large to be brought to {scale} bits")
    op, attributes = ("shift", {"bits": change}) if change > 0 else ("rescale", {"bits": -change, "ring": 64})
    out.append(replace(like, op=op, args=(number,), scale=scale, attributes=attributes))
    return len(out) - 1
