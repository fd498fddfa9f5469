"""The client's part: what turns a text, an image or a recording into a query, and a query's result into an answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..compile import decode_outputs, encode_client
from ..loading.answers import read_answer
from ..loading.huggingface import InputError
from ..loading.media import read_processor
from ..loading.task import Item, Task
from ..loading.truncation import IN_PYTHON, TextWindow, TooLong, Truncation, WaysOut, truncation_of
from ..loudness import Level
from ..program.program import ProgramError
from .circuits import CircuitPart, read_circuit, texts_of
from .layout import ArtifactError, find_part, only, read_json
from .tensors import CompiledLength, CompiledPart, read_lengths

if TYPE_CHECKING:  # importing it takes seconds
    from ..generation.chat import Chat


@dataclass
class ClientLength(CompiledLength):
    """One program with what the client's prelude reads: released tensors and public ring integers, by name. `levels`:
    how loud the client's values were in calibration."""

    tensors: dict[str, Tensor] = field(repr=False)
    scales: dict[str, int] = field(repr=False)
    levels: dict[str, Level] = field(repr=False)
    circuit: CircuitPart | None = field(default=None, repr=False)

    @property
    def texts(self) -> int:
        """Texts, images or recordings of one query."""
        return texts_of(self.program)

    @property
    def samples(self) -> int:
        """Of a recording that it takes as samples; 0 of anything else."""
        shape = self.program.inputs.get("input_values", ())
        return shape[-1] if len(shape) == 2 else 0

    def encode_inputs(self, inputs: Mapping[str, Any], wanted: Collection[str] | None = None) -> dict[str, Tensor]:
        """The sources of one query, in the ring, from the model's inputs. Errors: ProgramError.

        `wanted`: these sources alone, from the inputs they need, where several parties own the data.
        """
        return encode_client(self.program, self.tensors, self.scales, inputs, wanted, self.levels)


@dataclass
class Question:
    """A text, a pair of texts or an image, `item`, ready to be asked: `length` and `inputs` [1, ...] are the model's,
    `part` has the program. `left_out`: tokens that were cut off, as `truncate` says; `tokens`: those that are left. No
    other party learns of either. `more`: the pieces of a recording, or the windows of a text, after the first;
    `window`: which one it is."""

    length: int
    part: ClientLength
    inputs: dict[str, Tensor] = field(repr=False)
    item: Any = field(default=None, repr=False)
    truncate: Truncation | bool = False
    left_out: int = 0
    tokens: int = 0
    more: tuple[Question, ...] = ()
    window: TextWindow | None = None

    def sources(self) -> dict[str, Tensor]:
        """What a session's query takes."""
        return sources_of([self])


def sources_of(questions: Sequence[Question]) -> dict[str, Tensor]:
    """The sources of one query that answers all of these, which are of one length."""
    return questions[0].part.encode_inputs(together(questions))


def together(questions: Sequence[Question]) -> dict[str, Tensor]:
    """The model's inputs for all of these; places that are left repeat the last one."""
    rows = [questions[min(place, len(questions) - 1)].inputs for place in range(questions[0].part.texts)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@dataclass
class ClientPart(CompiledPart[ClientLength]):
    """`about`: client.json as it is."""

    task: Task
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> str:
        return self.task.kind

    @cached_property
    def chat(self) -> Chat | None:
        """Of a model that answers token by token."""
        from ..generation.chat import Chat
        from ..generation.seq2seq import Seq2Seq

        return (Seq2Seq if self.writes else Chat).load(self.folder, self.task.words)

    @property
    def in_passes(self) -> bool:
        """Whether it answers token by token, in passes of one session."""
        return any(part.parts for part in self.lengths.values())

    @property
    def writes(self) -> bool:
        """Whether what it answers in passes is a text about one text or audio."""
        return self.task.writes and self.in_passes

    @property
    def talks(self) -> bool:
        """Whether it answers in a conversation, and not whole texts."""
        return self.in_passes and not self.task.writes

    @property
    def outputs(self) -> frozenset[str]:
        """Names of what a query gives."""
        return frozenset(name for part in self.lengths.values() for name in part.program.outputs)

    @property
    def room(self) -> int:
        """Tokens after the prefix that a conversation may have."""
        from ..generation.rows import room

        return room(self.for_length().program)

    @property
    def reveals_scores(self) -> bool:
        """Of a model that answers token by token: whether the scores of all words are revealed, or the token alone."""
        return not any("noise" in part.inputs for part in self.for_length().program.parts.values())

    @property
    def source_lengths(self) -> dict[int, str]:
        """Of a generative model: the parts of its program that read a text or a recording, by their padded length."""
        from ..generation.parts import source_parts

        return source_parts(self.for_length().program.parts)

    @property
    def labels(self) -> dict[int, str]:
        return self.task.labels

    def fit(
        self, item: Item, length: int | None = None, truncate: Truncation | bool = "off", ways: WaysOut = IN_PYTHON
    ) -> tuple[int, int]:
        """(the length that a text is padded to, its tokens, of which those beyond it are cut off). The length is
        `length`, or the least compiled one that fits, or the greatest: that, and no more, is known of the text's own.

        Errors: InputError, with `ways` to go, where it would have to be cut and may not be.
        """
        compiled = self.source_lengths if self.writes else self.lengths
        tokens, lengths = self.task.tokens(item), compiled if length is None else [length]
        if fitting := [number for number in lengths if number >= tokens]:
            return fitting[0], tokens
        most, tokenized = max(lengths), isinstance(item, Mapping)
        if truncation_of(truncate) == "off" or tokenized:  # nobody but its tokenizer knows where to cut what it made
            ways = replace(ways, cut="truncation=True to the tokenizer") if tokenized else ways
            raise TooLong(tokens, most, compiled, self.task.positions, ways)
        return most, tokens

    def encode(
        self, item: Any, length: int | None = None, truncate: Truncation | bool = False, ways: WaysOut = IN_PYTHON
    ) -> Question:
        """A text or two in a tuple (padded to `length`; None: the least that fits), or an image: a file, or of PIL's.
        `truncate`: cut a text that is longer than its length (Task.encode_text); `ways`: as of `fit`.

        Errors: InputError, ArtifactError for a length that is not compiled.
        """
        item, tokens, left_out = self.task.item(item), 0, 0
        if self.chat is not None:
            item = self.chat.item(item, self.task.pair or self.task.pipeline)
        more: list[Any] = []
        if self.task.medium is not None:
            length, part = 0, self.for_length(0)
            first, *more = self.task.pieces(item)
            inputs = self.task.encode_file(first, part.samples)
        else:
            length, tokens = self.fit(item, length, truncate, ways)
            if tokens > length and truncate == "windows":
                return self._in_windows(item, length)
            left_out = max(tokens - length, 0)
            part = self.for_length(0 if self.writes else length)
            inputs = self.task.encode_text(item, length, truncate)
        taken = self._taken(part, inputs, length)
        rest = tuple(self.encode(piece) for piece in more)
        return Question(length, part, taken, item, truncate, left_out, tokens - left_out, rest)

    def _in_windows(self, item: Any, length: int) -> Question:
        """The question of a text's first window, with those of the others."""
        windows, questions = self.task.windows(item, length), list[Question]()
        part = self.for_length(length)
        for window in windows:
            inputs = self.task.encode_text(window.item, length, "end")
            taken, tokens = self._taken(part, inputs, length), self.task.tokens(window.item)
            questions.append(Question(length, part, taken, window.item, "end", 0, tokens, window=window))
        return replace(questions[0], more=tuple(questions[1:]))

    def _taken(self, part: ClientLength, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        """Of what a tokenizer or a processor made, what the model takes. Errors: InputError, ProgramError."""
        program = part.program.part(self.source_of(length)) if self.writes else part.program
        taken = {name: value for name, value in inputs.items() if name in program.inputs}
        for name, value in taken.items():
            if tuple(value.shape[1:]) != tuple(program.inputs[name][1:]):
                raise InputError(
                    f"{name} is {_size(value.shape)} here, and the model is compiled for {_size(program.inputs[name])}"
                    + (f": resize the {self._word}" if self.task.medium is not None else ": compile for this length")
                )
        missing = [name for name in program.inputs if name not in taken]
        if missing:
            raise ProgramError(f"{self.name}: takes {', '.join(missing)}, which is not made of a {self._word}")
        return taken

    def source_of(self, length: int) -> str:
        """The part that reads what is padded to a length; recordings have one. Errors: ArtifactError."""
        if self.task.medium is not None:
            return next(iter(self.source_lengths.values()))
        return only(self.source_lengths, length, self.folder)

    def decode(self, question: Question, outputs: Mapping[str, Tensor], top_k: int | None = None) -> Any:
        """A query's result (ring integers by output name) in the terms of the task (Task.read).

        Errors: AnswerOutOfRange.
        """
        return self.read(question, decode_outputs(question.part.program, outputs), top_k)

    def read(self, question: Question, outputs: Mapping[str, Tensor], top_k: int | None = None, place: int = 0) -> Any:
        """The same from float outputs by name, which are those of the `place`-th question of its query."""
        mine = outputs
        if question.part.texts > 1:
            mine = {name: value[place : place + 1] for name, value in outputs.items()}
        return read_answer(self.task, mine, question.inputs, top_k, question.item, question.truncate)

    @property
    def _word(self) -> str:
        return "text" if self.task.medium is None else self.task.medium.word


def load_client(folder: str | Path, computing: bool = True, tensors: dict[str, Tensor] | None = None) -> ClientPart:
    """The client's part of a compiled folder, DIR or DIR/client. `computing`: False for a client that only splits its
    values and adds answers: it reads no public weights. `tensors`: as of StoredTensors.

    Errors: ArtifactError, ProgramError.
    """
    part = find_part(folder, "client")
    try:
        return _client_part(part, computing, tensors)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ArtifactError(f"{part}: is not as this version of Blindformer writes it; compile again") from None


def _client_part(part: Path, computing: bool, tensors: dict[str, Tensor] | None) -> ClientPart:
    about = read_json(part / "client.json")
    lengths = {
        number: ClientLength(
            **common,
            tensors=read("released"),
            scales=names["scales"],
            levels=names.get("levels", {}),
            circuit=read_circuit(part, number, read("circuit")),
        )
        for number, common, names, read in read_lengths(part, computing, tensors)
    }
    labels = {int(number): label for number, label in about["labels"].items()}
    task = Task(
        about["name"],
        about["kind"],
        None if about["kind"] == "tensors" else read_processor(part, about["kind"]),
        about["positions"],
        labels,
        about["scores"],
    )
    return ClientPart(part, lengths, task, about)


def _size(shape: Any) -> str:
    return " x ".join(str(n) for n in shape[1:])
