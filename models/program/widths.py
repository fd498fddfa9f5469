"""How much of the ring each value needs: the low bits that its readers use. The rest neither travels nor is corrected.

A rescale of z by s bits needs z modulo 2^(w+s), if readers take w bits of its result; or, with an opening, modulo 2^v
where |z| < 2^(v-2) is known from calibration (with headroom). What z is a sum or product of is needed to no more, too.
Walking backwards gives each value's width. Readers that reduce it:
    rescale   w + s, or v            less     the comparison's bits
    shift     minus the shift        reveal   the answer's own size, sign included, and the bits that it drops
Everything else (sums, products, rearrangements) needs its arguments to the width of its result. So each operation says
(protocols/operations/, `demand` and `limit`).
"""

from __future__ import annotations

from dataclasses import replace

from ...protocols.operations import operations
from ...protocols.operations.operation import LOCAL, SOURCE, Bits
from ...protocols.wire import elements
from .program import Instruction, ProgramError

ROOM = 2.0  # an input may show twice what calibration saw, everywhere


def near_width(instructions: list[Instruction], bounded: set[int]) -> dict[str, float]:
    """Modules with a value whose width ends less than `ROOM` times above what calibration saw, and how many times.

    `bounded`: instructions whose values cannot pass what was seen, or that may be read wrong where they do.
    """
    near: dict[str, float] = {}
    known = operations()
    for place, item in enumerate(instructions):
        limit = known[item.op].limit
        if limit is None:
            continue
        number = item.args[0]
        while instructions[number].op == "shift":
            number = instructions[number].args[0]
        source = instructions[item.args[0]]
        if number in bounded or place in bounded or not source.bound:
            continue
        room = limit(item.width, item.attributes) * 2.0**-source.scale / source.bound
        if room < ROOM:
            near[item.path or "model"] = min(room, near.get(item.path or "model", room))
    return near


def is_opened(rescale: Instruction) -> bool:
    """Whether a placed rescale takes a message, as more bits of its result are read than it leaves."""
    return rescale.width > rescale.attributes["ring"] - rescale.attributes["bits"]


def place_widths(instructions: list[Instruction], needed: dict[int, int]) -> list[Instruction]:
    """`needed`: per instruction, the bits its magnitude takes, sign and headroom included."""
    known = operations()
    width, compared, opened = [8] * len(instructions), [0] * len(instructions), [False] * len(instructions)
    placed, costly, free = list(instructions), _costly_for_dealer(instructions), _local_without_dealer(instructions)
    for number in range(len(instructions) - 1, -1, -1):
        item = instructions[number]
        argument = needed.get(item.args[0], 64) if item.args else 64
        about = {"costly": any(costly[arg] for arg in item.args[:1]), "free": any(free[arg] for arg in item.args[:1])}
        bits = Bits(width[number], needed.get(number, 64), argument, compared[number], opened=opened[number], **about)
        demand = min(64, known[item.op].demand(bits, item.attributes))
        if "ring" in item.attributes and item.attributes["bits"] + bits.compared > 64:
            reach = 2.0 ** (bits.compared - item.scale)
            raise ProgramError(
                f"{item.path or 'model'}: a table that reaches {reach:.0f} leaves too few bits; compile for "
                "fewer tokens, or use --window"
            )
        chosen = {"ring": bits.ring} if "ring" in item.attributes else {}
        if bits.early:
            chosen["early"] = True
        for arg in item.args:
            width[arg] = max(width[arg], demand)
            # A comparison's threshold may be the larger part. Of a sum with public numbers it reads the opening of the
            # other summand.
            secret = sum(instructions[summand].op != "constant" for summand in item.args)
            passed = bits.compared if known[item.op].signs and secret == 1 else 0
            compared[arg] = max(compared[arg], bits.compares, passed)
            opened[arg] |= known[item.op].opened
        placed[number] = replace(item, width=bits.width, attributes={**item.attributes, **chosen})
    return placed


def _costly_for_dealer(instructions: list[Instruction]) -> list[bool]:
    """Of each result, whether a dealer makes many numbers for each element, or of what it is a sum of; or whether it is
    a product of larger matrices, which are as wide as it is."""
    known, costly = operations(), []
    for item in instructions:
        operation = known[item.op]
        moved = operation.rearranges or bool(operation.signs)
        factors = [arg for arg in item.args if known[instructions[arg].op].kind != SOURCE]
        largest = max((elements(instructions[arg].shape) for arg in factors), default=0)
        product = operation.scales == "matrix" and largest >= 2 * elements(item.shape)
        costly.append(operation.costly or product or (moved and any(costly[arg] for arg in item.args)))
    return costly


def _local_without_dealer(instructions: list[Instruction]) -> list[bool]:
    """Of each result, whether each party computes it alone from products with public weights."""
    known, free = operations(), []
    for item in instructions:
        opened = item.op == "linear" and instructions[item.args[1]].op == "constant"
        shared = [free[arg] for arg in item.args if known[instructions[arg].op].kind != SOURCE]
        free.append(opened or (known[item.op].kind == LOCAL and bool(shared) and all(shared)))
    return free
