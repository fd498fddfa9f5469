"""A conversation as its client keeps it: how many tokens were read, and how the next ones are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...protocols.clear import ClearEngine
from ...protocols.operations.reveal import RevealedRows, rows_of
from ...protocols.states import SPARE, KeptStates
from ..artifacts.tensors import ProgramPart
from ..compile import Compiled
from ..program.interpreter import interpret
from ..program.program import Instruction, Program
from .decoder import KV_LENGTH, GenerationError, Noise
from .parts import size_of

Pass = Callable[[str, Mapping[str, Tensor], tuple[str, int], RevealedRows], Mapping[str, Tensor]]
"""One pass: the part's name, its inputs, the part and the rows of the pass that most likely follows, and the rows of
its result that are revealed; gives these, decoded, by output name. It keeps the rows that it makes, after the first
`rows` of those kept before."""


Part = Compiled | ProgramPart
_MASK = "attention_mask"  # of a source
MAX_ROLLBACK_ROWS = SPARE - 32  # of a window: passes of other sizes read up to 31 rows more
Ahead = Callable[[str, int], None]
"""Told of the part and the rows of a pass that is to come when somebody has read and typed."""


class KVState:
    """`ids`: of the tokens that are kept, and so can be read: the prefix, then one for each row. `passes`: how many
    there were. `words`: of the vocabulary, where only tokens are revealed: `noise` of their rows is added to the scores
    then. `slots`: tokens that there may be after the prefix. `asked`: tokens of the last question, a guess of the next.
    `source`: the part that has read what is answered, of an encoder-decoder model, and `given` its inputs. `drafts`: of
    each pass of this answer, at most; `steady`: whether all these passes are of one size.
    """

    drafts, steady = 0, False

    def __init__(self, program: Program, run: Pass, prefix: Sequence[int], ahead: Ahead | None = None) -> None:
        self.run, self.prefix, self.ids, self.passes = run, len(prefix), list(prefix), 0
        parts = {name: part for name, part in program.parts.items() if size_of(name)}
        self.sizes = sorted({size_of(name) for name in parts})
        self.ahead, self.asked = ahead, self.sizes[-1]
        self.parts = sorted((room(part), name) for name, part in parts.items())
        self.program, self.source, self.given = program, "", dict[str, Tensor]()
        self.source_read = False  # so a new session has to read it, too
        self.slots, self.window = room(program), window(program)
        self.most = 0  # rows there were
        noise = [part.inputs["noise"] for part in parts.values() if "noise" in part.inputs]
        self.words = noise[0][-1] if noise else 0
        self.noise = Noise(self.words)

    @property
    def rows(self) -> int:
        return len(self.ids) - self.prefix

    def crop(self, length: int) -> None:
        """Forget all tokens from this place on: the next ones take their rows. Where what comes before was dropped,
        all is to be read again."""
        dropped = self.most - (length - self.prefix)
        gone = 0 < self.window + MAX_ROLLBACK_ROWS < self.most and dropped > MAX_ROLLBACK_ROWS
        self.ids = self.ids[: self.prefix if gone else max(length, self.prefix)]
        self.most = 0 if gone else self.most

    def read(self, ids: Sequence[int], wanted: int | None = None) -> Tensor:
        """Read these tokens after all others; what is revealed (Decoder) of the last `wanted` of them (default: of all)
        [tokens, ...].

        Errors: GenerationError where there is no room.
        """
        if len(ids) > self.slots - self.rows:
            raise GenerationError(
                f"conversation: {self.rows} + {len(ids)} tokens exceed its {self.slots}; begin a new one, or "
                "compile for more (--tokens)"
            )
        outputs = []
        hidden = 0 if wanted is None else len(ids) - wanted  # tokens to come of which nothing is revealed
        while ids:
            size = self._size(len(ids), self.rows)
            outputs.append(self._pass(list(ids[:size]), size, len(ids) - size, hidden))
            ids, hidden = ids[size:], max(0, hidden - size)
        return torch.cat(outputs)

    def read_source(self, part: str, inputs: Mapping[str, Tensor]) -> None:
        """Begin an answer to this source, which all of its tokens read. Nothing is revealed."""
        self.crop(0)
        self.source, self.given, self.source_read = part, dict(inputs), False
        self._read_source()
        self.source_read = True

    def _read_source(self) -> None:
        following = (self._part(self.sizes[0], 0), 0)
        self.run(self.source, {**self.given, KV_LENGTH: torch.tensor([0])}, following, (0, 0))
        self.passes += 1

    def prepare(self) -> None:
        """Have the next question's pass prepared now, where that can be."""
        if self.ahead is not None and self.source:
            self.ahead(self.source, 0)
        elif self.ahead is not None and self.rows < self.slots:
            self.ahead(self._part(self._size(self.asked, self.rows), self.rows), self.rows)

    def read_again(self) -> None:
        """What was read, for a state that is empty."""
        ids = self.ids[self.prefix :]
        self.crop(0)
        if self.source_read:
            self._read_source()
        try:
            if ids:
                self.read(ids, wanted=0)
        except BaseException:
            self.ids = [*self.ids[: self.prefix], *ids]  # it is still to be read
            raise

    def spare(self, count: int, fill: bool) -> int:
        """How many tokens more the last pass may take that reads the next `count`: to fill it up; else, to be full in
        the largest size."""
        rows = self.rows
        if count >= self.slots - rows:
            return 0
        while count > (size := self._size(count, rows)):
            count, rows = count - size, rows + size
        return (size if fill else self._size(self.sizes[-1], rows)) - count

    def finish(self) -> None:
        """An answer is complete."""

    def _size(self, count: int, rows: int) -> int:
        """Of the next pass, where so many tokens are left to read."""
        fitting = [size for size in self.sizes if size <= self.slots - rows]
        return next((size for size in fitting if size >= count), fitting[-1])

    def _pass(self, ids: list[int], size: int, left: int, hidden: int) -> Tensor:
        """What fills up a pass is never read: the next pass takes its rows. `left`: tokens of other passes to come."""
        count = len(ids)
        part = self._part(size, self.rows)
        inputs = {"input_ids": torch.tensor([ids + ids[-1:] * (size - count)]), KV_LENGTH: torch.tensor([self.rows])}
        if _MASK in self.program.part(part).inputs:
            mask = self.given[_MASK]
            inputs[_MASK] = F.pad(mask, (0, self.program.part(part).inputs[_MASK][-1] - mask.shape[-1]))
        if self.words:
            inputs["noise"] = self.noise(range(self.rows, self.rows + size))
        following = next((s for s in self.sizes if s >= max(left, 1)), self.sizes[-1])
        rows = self.rows + count
        revealed = (min(hidden, count), count)
        (answer,) = self.run(part, inputs, (self._part(following, rows), rows), revealed).values()
        self.ids += ids
        self.most = max(self.most, self.rows)
        self.passes += 1
        return answer[0]

    def _part(self, size: int, rows: int) -> str:
        """The part of this size with the least room that holds so many rows."""
        fitting = [(most, name) for most, name in self.parts if size_of(name) == size]
        return next((name for most, name in fitting if most >= rows), fitting[-1][1])


def room(program: Program) -> int:
    """Tokens after the prefix that a conversation may have: of each size of a pass, in the part with the most room."""
    if program.tokens:
        return program.tokens
    if program.parts:
        most: dict[int, int] = {}
        for name, part in program.parts.items():
            if size := size_of(name):
                most[size] = max(room(part), most.get(size, 0))
        return min(most.values())
    return next((item.shape[-2] for item in _states(program)), 0)


def _states(program: Program) -> Iterator[Instruction]:
    """Of tokens that earlier passes read, not of a source."""
    return (item for item in program.instructions if item.op == "state" and not item.attributes.get("whole"))


def behind(program: Program, part: str) -> int:
    """The most tokens that a pass of this part comes behind."""
    part_program = program.part(part)
    return room(program) if window(part_program) else min(room(part_program), room(program))


def window(program: Program) -> int:
    """How many of the last rows a pass reads where there are more; 0: it reads all."""
    if program.parts:
        return min((rows for part in program.parts.values() if (rows := window(part))), default=0)
    state = next(_states(program), None)
    return 0 if state is None or "last" not in state.attributes else state.shape[-2]


def run_clear(parts: Mapping[str, Part], weights: Mapping[str, Tensor]) -> Pass:
    """Passes on the reference protocol: the same integers as parties compute, in one process."""
    states = KeptStates()

    def run(
        name: str, inputs: Mapping[str, Tensor], following: tuple[str, int], revealed: RevealedRows
    ) -> Mapping[str, Tensor]:
        part = parts[name]
        states.truncate(int(inputs[KV_LENGTH]))
        sources = {**part.encode_inputs(inputs), **part.encode_known(inputs), **weights, **part.constants}
        outputs = interpret(part.program, ClearEngine(sources, states)).outputs
        return part.decode({name: rows_of(value, revealed) for name, value in outputs.items()})

    return run
