"""A decoder as one Program of several parts, which differ in how many tokens one pass takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...approximations import Plan, calibrate
from ...approximations.registry import find
from ..compile import CALIBRATED, Compiled, Progress, compile, part_of
from ..loading.accepted import TRACING
from ..lowering.export import Traces
from ..program.program import Instruction, Program
from ..weight_owners import Weights
from .decoder import KV_LENGTH, Decoder, GenerationError, conversation

if TYPE_CHECKING:  # a party has no need of transformers
    from .cross import CrossDecoder

SIZES = (1, 8, 32)  # tokens of one pass
LEAST_ROOM = 64  # tokens: of the first parts of a conversation, which need not pay for all of its room
_A_LEVEL = {"rsqrt": 6000.0, "layer_norm": 6000.0, "reciprocal": 1500.0}
"""Numbers of the dealer's that one round less is worth, of one place: of a token's divisions there is one a head."""
FIRST = 6  # parts
_PASSES = 8  # of a text, that calibrate
_SOURCE = "source"
_READ = 0.7  # of the time, about, until all passes over sources are compiled


def compile_decoder(
    decoder: Decoder,
    texts: Sequence[Tensor],
    plan: Plan | str = "faithful",
    *,
    slots: int = 256,
    sizes: Iterable[int] = SIZES,
    embedding: str = "client",
    weights: Weights = "private",
    progress: Progress | None = None,
    name: str = "",
    sources: Mapping[str, Compiled] | None = None,
    given: Sequence[Mapping[str, Tensor]] = (),
) -> Compiled:
    """Compile for conversations of up to `slots` tokens after the prefix; with a window, of any number.

    texts       ids of typical texts, each [tokens], to calibrate on: what follows the prefix. Never a user's
    embedding, weights   as `compile`, of the decoder's parameters
    sources     parts that read a source, and keep rows of it that the others read
    given       what every pass of a text takes besides, by text

    Errors: GenerationError, and those of `compile`.
    """
    sizes, plan = sorted(sizes, reverse=True), alike(plan)
    most = decoder.window or slots
    programs = dict(sources or {})
    pairs = [(ids, given[number] if given else {}) for number, ids in enumerate(texts)]
    states = {name: scale for part in programs.values() for name, scale in part.states.items()}
    traces: dict[int, Traces] = {}
    like: Compiled | None = None
    wanted = list(product(_in_order(rooms(most), max(map(len, texts), default=0)), sizes))
    wanted += [(places, size) for size in sizes for places in rooms_between(most, size)]
    for number, (places, size) in enumerate(wanted):
        more = sizes[0] - size  # as many columns of scores whatever the size
        passes = (b for ids, at in pairs for b in islice(conversation(decoder, ids, size, places + more, at), _PASSES))
        batches = list(passes if like is None else islice(passes, _PASSES))
        if not batches:
            raise GenerationError(f"calibration: every text is shorter than {size} tokens; give longer ones")
        if size not in traces:
            full = (b for ids, at in pairs for b in conversation(decoder, ids, size, most + more, at))
            traces[size] = Traces(next(full))
        batches.sort(key=lambda batch: -int(batch[KV_LENGTH]))
        if like is not None:
            batches = [_filled(batches[0], decoder.names, max(places - size, 0))]
        programs[part_name(size, places)] = compiled = compile(
            decoder,
            batches,
            plan if like is None else like.plan,
            embedding=embedding,
            weights=weights,
            progress=part_of(progress, *_share(number, len(wanted)), f"{size} tokens at a time, room for {places}: "),
            inputs=decoder.inputs(last=most < slots and places == most),
            like=like,
            states=states,
            traces=traces[size],
        )
        if like is not None:
            compiled.nodes, compiled.placed, compiled.ranges = [], {}, {}  # nodes hold the weights again
        like = like or compiled
        for mine, theirs in ((compiled.weights, like.weights), (compiled.constants, like.constants)):
            mine.update({name: _same(value, theirs.get(name)) for name, value in mine.items()})  # held once
    return join(programs, name or type(decoder.model).__name__, slots if most < slots else 0)


def compile_cross(
    decoder: CrossDecoder,
    sources: Mapping[int, Sequence[Mapping[str, Tensor]]],
    texts: Sequence[Tensor],
    plan: Plan | str = "faithful",
    *,
    embedding: str = "client",
    weights: Weights = "private",
    progress: Progress | None = None,
    **options: Any,
) -> Compiled:
    """Compile an encoder-decoder model for answers to sources.

    sources     typical ones, by what they are padded to: the same at each, to calibrate on. Never a user's
    texts       ids of answers to the first of them, each [tokens]
    options     of `compile_decoder`
    """
    most = max(sources)
    size = decoder.rows_of(sources[most][0])
    given = [decoder.padded(source, size) for source in sources[most][: len(texts)]]
    plan = alike(plan)
    if not plan.ranges:
        with TRACING:
            answers = [conversation(decoder, ids, len(ids), len(ids), at) for ids, at in zip(texts, given, strict=True)]
            batches = [*(source for length in sources for source in sources[length]), *chain(*answers)]
            count = part_of(progress, 0, CALIBRATED)
            plan = calibrate(decoder, batches, plan, lambda at, all: count("calibrate", at, all))
    reading = part_of(progress, CALIBRATED, _READ)
    parts: dict[str, Compiled] = {}
    like: Compiled | None = None
    for number, length in enumerate(sorted(sources, reverse=True)):
        like = parts[source_name(length)] = compile(
            decoder,
            sources[length] if like is None else sources[length][:1],
            plan,
            embedding=embedding,
            weights=weights,
            progress=part_of(reading, number / len(sources), (number + 1) / len(sources), f"a source of {length}: "),
            inputs=decoder.inputs(),
            like=like,
        )
    rest = {"progress": part_of(progress, _READ, 1), "sources": parts, "given": given, **options}
    return compile_decoder(decoder, texts, plan, embedding=embedding, weights=weights, **rest)


def _share(number: int, parts: int) -> tuple[float, float]:
    """From where to where one part is of all the work: the first, which calibrates for all, is as much as `FIRST`."""
    start, end = (place / (FIRST + parts - 1) for place in (number and FIRST + number - 1, FIRST + number))
    return start, end


def rooms(most: int) -> list[int]:
    """Of a conversation that grows: each twice as large as the one before, to the last, which holds `most` tokens."""
    numbers = [LEAST_ROOM]
    while numbers[-1] < most:
        numbers.append(2 * numbers[-1])
    return [*(room for room in numbers if room <= most * 3 / 4), most]


def rooms_between(most: int, size: int) -> list[int]:
    """More rooms, for passes that read a prompt: each of their rows pays for all columns of a room."""
    if 2 * size < LEAST_ROOM:
        return []
    between = [LEAST_ROOM // 2, *(room * 3 // 2 for room in rooms(most)[:-1])]
    return [room for room in between if room <= most * 3 / 4]


def _in_order(rooms: Sequence[int], longest: int) -> list[int]:
    """First the room to calibrate in, the least that holds the longest text: more costs more and tells no more."""
    first = next((room for room in rooms if room >= longest), rooms[-1])
    return [first, *(room for room in reversed(rooms) if room != first)]


def _filled(batch: Mapping[str, Tensor], names: Iterable[str], rows: int) -> dict[str, Tensor]:
    """A pass behind so many rows: those that it has, again and again."""
    kept = max(int(batch[KV_LENGTH]), 1)
    past = {name: batch[name][:, :, torch.arange(batch[name].shape[2]) % kept] for name in names}
    return {**batch, **past, KV_LENGTH: torch.tensor([rows])}


def alike(plan: Plan | str) -> Plan:
    """The plan, with larger tables for less rounds in norms and divisions, of which a token has few numbers: a pass of
    many tokens then computes as one of a single token does, and ranges of one hold for all."""
    plan = Plan.preset(plan) if isinstance(plan, str) else plan
    for kind, level in () if plan.ranges else _A_LEVEL.items():
        choice = getattr(plan, kind)
        if "level" in find(kind, choice.name).options():
            plan = plan.replace(**{kind: {"name": choice.name, "options": {"level": level, **choice.options}}})
    return plan


def _same(value: Tensor, before: Tensor | None) -> Tensor:
    return before if before is not None and torch.equal(value, before) else value


def part_name(size: int, slots: int) -> str:
    return f"{size}@{slots}"


def source_name(length: int) -> str:
    return f"{_SOURCE}@{length}"


def size_of(part: str) -> int:
    """Tokens of a pass; 0 of one that reads a source."""
    size = part.partition("@")[0]
    return 0 if size == _SOURCE else int(size)


def source_parts(names: Iterable[str]) -> dict[int, str]:
    """Parts that read a source, by what it is padded to, the shortest first."""
    return dict(sorted((int(name.partition("@")[2]), name) for name in names if not size_of(name)))


def join(parts: Mapping[str, Compiled], name: str, tokens: int = 0) -> Compiled:
    """One program of these parts, whose weights are held once where they are equal. `tokens`: as of Program."""
    first = next(iter(parts.values()))
    weights: dict[str, Tensor] = {}
    programs: dict[str, Program] = {}
    for title, part in parts.items():
        names: dict[str, str] = {}
        for old, value in part.weights.items():
            names[old] = old if old not in weights or torch.equal(weights[old], value) else f"{old} of {title}"
            weights.setdefault(names[old], value)
        part.program = part.program.model_copy(
            update={"instructions": tuple(_renamed(item, names) for item in part.program.instructions)}
        )
        part.weights, programs[title] = {}, part.program
    program = Program(model=name, plan=first.program.plan, parts=programs, tokens=tokens)
    program.check()
    return Compiled(program, weights, {}, {}, {}, first.plan, first.structure, parts=dict(parts))


def _renamed(item: Instruction, names: Mapping[str, str]) -> Instruction:
    if item.op != "weight":
        return item
    return replace(item, attributes={**item.attributes, "name": names[item.attributes["name"]]})
