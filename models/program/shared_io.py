"""A Program between other computations: shares come in and go out at one scale, as another framework holds them.

    input(name)        at `bits` fractional bits, then a shift, or an exact rescale, to the Program's own scale
    reveal(to owner)   of the whole ring, at `bits`: each party keeps a fresh share

Such a Program has no prelude, since nobody knows its inputs. Every party derives the same one from what was compiled.
"""

from __future__ import annotations

from ...protocols.operations import OWNER
from .program import Instruction, Program, ProgramError
from .two_server import for_two_servers
from .widths import place_widths

_ROOM = 62  # bits: a rescale takes values below 2^62


def with_shared_io(program: Program, bits: int) -> Program:
    """The same model on shares at `bits` fractional bits. Errors: ProgramError if an input is prepared in the clear."""
    if program.prelude:
        first = next(iter(program.inputs), "the input")
        raise ProgramError(
            f"{first}: is prepared in the clear by its owner ({program.prelude[0].target}), and nobody knows a secret "
            "tensor; compile the part of the model that comes after (an encoder's layers, without the embeddings)"
        )
    out: list[Instruction] = []
    moved: dict[int, int] = {}
    sizes: dict[int, int] = {}  # bits of what a rescale reads, as compiled
    for number, item in enumerate(for_two_servers(program).instructions):
        item = item.model_copy(update={"args": tuple(moved[arg] for arg in item.args)})
        if item.op == "rescale":
            sizes[item.args[0]] = max(sizes.get(item.args[0], 0), item.attributes["ring"] - 1)
        if item.op == "reveal":
            # Its scale tells the result's: a factor of a power of two is only a change of scale (scales.py).
            source = item.model_copy(update={"scale": item.scale + item.attributes.get("bits", 0)})
            update = {"args": (_moved(out, source, item.args[0], bits),), "scale": bits, "attributes": {"to": OWNER}}
            item = item.model_copy(update=update)
        if item.op == "input":
            name = program.client[item.attributes["name"]]
            own = item.model_copy(update={"scale": bits, "attributes": {**item.attributes, "name": name}})
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
    out.append(like.model_copy(update={"op": op, "args": (number,), "scale": scale, "attributes": attributes}))
    return len(out) - 1
