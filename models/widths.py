"""How much of the ring each value needs: the low bits that its readers use. The rest neither travels nor is corrected.

A rescale of z opens z modulo 2^w, and |z| < 2^(w-2) is known from calibration (with headroom), so z is only needed
modulo 2^w; and what z is a sum or product of, too. Walking backwards gives each value's width. Readers that reduce it:
    rescale   its own w              less     the comparison's bits
    shift     minus the shift        reveal   the answer's own size, sign included, and the bits that it drops
Everything else (sums, products, rearrangements) needs its arguments to the width of its result.
"""

from __future__ import annotations

from .program import Instruction

ROOM = 2.0  # an input may show twice what calibration saw, everywhere


def near_width(instructions: list[Instruction], bounded: set[int]) -> dict[str, float]:
    """Modules with a value whose width ends less than `ROOM` times above what calibration saw, and how many times.

    `bounded`: instructions whose values cannot pass what was seen.
    """
    found: dict[str, float] = {}
    for item in instructions:
        if item.op not in ("rescale", "less", "reveal"):
            continue
        number = item.args[0]
        while instructions[number].op == "shift":
            number = instructions[number].args[0]
        source = instructions[item.args[0]]
        if number in bounded or not source.bound:
            continue
        if item.op == "less":
            limit = 2.0 ** (item.attributes["bits"] - 1) - abs(item.attributes["threshold"])
        else:
            ring = item.attributes.get("ring", item.width)
            limit = 2.0 ** (ring - 2 if item.op == "rescale" else ring - 1)
        room = limit * 2.0**-source.scale / source.bound
        if room < ROOM:
            found[item.path or "model"] = min(room, found.get(item.path or "model", room))
    return found


def _round(bits: int) -> int:
    """Whole bytes."""
    return 8 * ((min(max(bits, 1), 64) + 7) // 8)


def place_widths(instructions: list[Instruction], needed: dict[int, int]) -> list[Instruction]:
    """`needed`: per instruction, the bits its magnitude takes, sign and headroom included."""
    width = [0] * len(instructions)
    ring = dict.fromkeys(range(len(instructions)), 64)
    compared = [0] * len(instructions)  # widest comparison that reads the value: its threshold may be the larger part
    for number in range(len(instructions) - 1, -1, -1):
        item = instructions[number]
        if item.op == "reveal":
            width[number] = _round(needed.get(number, 64))
            if bits := item.attributes.get("bits"):
                ring[number] = min(64, width[number] + bits)
                width[number] = ring[number] - bits  # no more: the bits above would tell of the masks (reveal.py)
        own = width[number] = max(width[number], 8)
        demand = ring[number] if item.op == "reveal" and item.attributes.get("bits") else own
        if item.op == "rescale":
            source = item.args[0]
            kept = item.attributes["bits"] + max(4, compared[number])
            ring[number] = max(_round(needed.get(source, 64) + 1), _round(kept))
            demand = ring[number]
        elif item.op == "less":
            demand = _round(item.attributes["bits"])
            compared[item.args[0]] = max(compared[item.args[0]], item.attributes["bits"])
        elif item.op == "shift":
            demand = max(8, own - item.attributes["bits"])
        for arg in item.args:
            width[arg] = max(width[arg], _round(demand))
    placed = []
    for number, item in enumerate(instructions):
        attributes = item.attributes
        if "ring" in attributes:
            attributes = {**attributes, "ring": ring[number]}
        placed.append(item.model_copy(update={"width": width[number], "attributes": attributes}))
    return placed
