"""The client's part of a delegated model: the model itself, what feeds it, and how its layers are delegated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Plan
from ...protocols.delegated.group import ClientGroup
from ..artifacts.client import ClientPart, Question
from ..building import default_lengths
from ..generation.chat import Chat
from ..generation.conversation import Conversation
from ..generation.decoder import causal_model
from ..generation.encoder_decoder import chat_of
from ..loading.calibration_recordings import calibration_recordings
from ..loading.huggingface import InputError
from ..loading.load import BUCKETS, Loaded
from ..loading.speech import windowed
from ..loading.task import Task
from .head import PrivateHead
from .manifest import DelegatedModel, Manifest, fill, prepare, ring_of
from .rows import DelegatedRows
from .running import DelegatedRunner, Recorder, row_class
from .sequences import DelegationError, GroupCalls, check_weights, groups_within, sequence_of

_TEXT = "The quick brown fox jumps over the lazy dog."
_SOURCE = "source"
_ANY_ROOM = 2**20  # tokens, of a model without a limit


@dataclass(frozen=True)
class AnyLength:
    """Stands for a compiled length: the model's own code takes any. `program`: what the parties agree on."""

    program: Manifest
    texts: int = 1
    samples: int = 0
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class DelegatedPart(ClientPart):
    """`runner`: runs the model. Texts are padded to the least of some lengths, as those of compiled models are: the
    server sees the number of rows. `pad`: whether rows of all passes are, and passes of conversations."""

    runner: DelegatedRunner = field(kw_only=True)
    model: DelegatedModel = field(kw_only=True)
    pad: bool = field(default=False, kw_only=True)
    conversation: Chat | None = field(default=None, kw_only=True)
    head: PrivateHead | None = field(default=None, kw_only=True)

    @cached_property
    def groups(self) -> list[ClientGroup]:
        """With this process's own check of answers."""
        return self.model.client_groups()

    @cached_property
    def chat(self) -> Chat | None:
        return self.conversation

    def keep_layers(self, memory: float, inputs: Mapping[str, Any], stored: dict[str, Tensor]) -> None:
        """Compute here what fits so many bytes. `inputs`: usual ones; `stored`: weights that are in files.

        Errors: DelegationError.
        """
        runner, model = self.runner, self.model
        sequence = sequence_of(runner.steps(runner.module, (), inputs))
        for number in groups_within(memory, runner.groups, sequence, runner.index.parameters):
            group = runner.groups[number]
            fill(runner.module, stored, [layer.parameter for layer in group.layers])
            check_weights(group.matrix(runner.index.parameters), model.integers[number], model.scales[number])
            runner.keep([layer.parameter for layer in group.layers])

    @property
    def in_passes(self) -> bool:
        return self.conversation is not None

    @property
    def outputs(self) -> frozenset[str]:
        """Unknown until the model has run; an encoder of texts that has a projection names it."""
        config = getattr(self.runner.module, "config", None)
        return frozenset(["text_embeds"] if hasattr(config, "projection_dim") else [])

    @property
    def room(self) -> int:
        return self.task.positions or _ANY_ROOM

    @property
    def reveals_scores(self) -> bool:
        return True

    @property
    def source_lengths(self) -> dict[int, str]:
        return dict.fromkeys(self.lengths if self.task.medium is None else (0,), _SOURCE)

    def for_length(self, length: int | None = None) -> Any:
        return next(iter(self.lengths.values()))

    def sequences(self, length: int | None) -> tuple[GroupCalls, ...]:
        """Of the passes that are made ahead for one query: of a text of this length; of so many tokens of a
        conversation; of a model that writes, those that read the source and begin the answer, or (length 1) that of one
        token after them. Errors: InputError where the server cannot know them before the query."""
        sequences = self._sequences(length)
        return tuple(tuple((group, row_class(rows)) for group, rows in one) if self.pad else one for one in sequences)

    def _sequences(self, length: int | None) -> list[GroupCalls]:
        if self.talks:
            return [DelegatedRows(self.runner, lambda run: None, self.room).sequence(length or 1)]
        by_token, medium = self.writes and length == 1, self.task.medium
        if medium is not None and length is not None and not by_token:
            raise InputError(f"{self.name}: takes {medium.plural}, which have no lengths; leave --length out")
        if medium is None and length is None:
            raise InputError(f"{self.name}: takes texts of any length; give one that they are padded to (--length)")
        size = min(self.lengths) if by_token else length
        asked = [self.encode("a", size, "end")] if medium is None else [*map(self.encode, typical_items(self.task))]
        one, *others = [self._written(each) if self.writes else self._read(each) for each in asked]
        if any(other != one for other in others):
            raise InputError(f"{self.name}: its passes depend on the {self._word}'s size, so none can be made ahead")
        if self.writes:
            return one[-1:] if by_token else one[:-1]
        return one

    def _read(self, question: Question) -> list[GroupCalls]:
        return [sequence_of(self.runner.steps(self.runner.module, (), question.inputs))]

    def _written(self, question: Question) -> list[GroupCalls]:
        """The passes of an answer of two tokens. What it says makes no difference."""
        recorder = Recorder([group.outputs for group in self.runner.groups])
        rows: Any = DelegatedRows(self.runner, lambda run: run(recorder), self.room)
        assert self.chat is not None
        source = self.source_of(question.length)
        Conversation(self.chat, rows).write(source, question.inputs, max_new_tokens=2, min_new_tokens=2)
        return recorder.sequences

    def _taken(self, part: Any, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        known = inspect.signature(type(self.runner.module).forward).parameters
        taken = {name: value for name, value in inputs.items() if name in known}
        if not taken:
            raise InputError(f"{self.name}: takes none of {', '.join(inputs)}")
        return taken


def delegated_part(
    loaded: Loaded,
    model: DelegatedModel | None = None,
    *,
    plan: Plan | str | None = None,
    system: str | None = None,
    seconds: int | None = None,
    folder: Path | None = None,
    memory: float = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    write: Callable[[int, Tensor], Tensor] = lambda number, integers: integers,
) -> DelegatedPart:
    """The client's part of a loaded model. `model`: prepared before (default: it is prepared now). `system`: what every
    conversation begins with; `seconds`: of audio that a model of speech hears at once; `plan`: "faithful" or "fast";
    `memory`: bytes of layers that the client computes by itself; `write`: as of `prepare`. What lies in the model's
    files is read once: the client's own parameters stay in memory.

    Errors: DelegationError, LoadError, GenerationError, and those of `write`.
    """
    if (trained := loaded.plan()) is not None and trained.needs_distillation():
        what = f"was trained with the functions of plan {trained.name}, and a public model runs with its own"
        raise DelegationError(f"{loaded.name}: {what}; keep its weights private, or take its teacher")
    loaded = windowed(loaded, seconds)
    module: Any = module_of(loaded)
    named = dict(module.named_parameters())
    stored = {name: loaded.stored.pop(own) for name, own in named.items() if own in loaded.stored}
    if model is None:
        run = partial(module, **example_inputs(loaded))
        model = prepare(module, run, loaded.name, progress, ring_of(plan), stored, write)
    else:
        fill(module, stored, stored.keys() - model.manifest.parameters)
    task, chat = loaded.task, None
    lengths = default_lengths(loaded)
    most = lengths[-1] if loaded.positions is None else loaded.positions
    lengths = sorted({*lengths, *(length for length in BUCKETS if length <= most)})
    if task.medium is not None or loaded.kind == "causal":
        lengths = [0]
    if loaded.kind == "causal":
        chat = Chat(loaded.processor, module.config, module.generation_config, [], system or "")
    elif task.writes:
        chat = chat_of(loaded)
    about = {"plan": model.manifest.plan, "name": loaded.name, "kind": loaded.kind, "seconds": seconds}
    any_length: Any = AnyLength(model.manifest)
    of_lengths: dict[int, Any] = dict.fromkeys(lengths, any_length)
    part = DelegatedPart(
        folder or loaded.folder,
        of_lengths,
        task,
        about,
        runner=DelegatedRunner(module, model),
        model=model,
        conversation=chat,
    )
    if memory:
        part.keep_layers(memory, example_inputs(loaded), stored)
    return part


def part_of_module(
    module: nn.Module, run: Callable[[], Any], name: str = "", plan: Plan | str | None = None
) -> DelegatedPart:
    """Of a module without anything that feeds it. `run`: as of `prepare`. Errors: DelegationError."""
    model = prepare(module, run, name or type(module).__name__, ring=ring_of(plan))
    any_length: Any = AnyLength(model.manifest)
    task, runner = Task(model.manifest.model, "tensors"), DelegatedRunner(module, model)
    return DelegatedPart(Path(), {0: any_length}, task, {"plan": model.manifest.plan}, runner=runner, model=model)


def module_of(loaded: Loaded) -> nn.Module:
    """What runs at the client. Errors: GenerationError."""
    return causal_model(loaded) if loaded.kind == "causal" else loaded.model


def example_inputs(loaded: Loaded, length: int = 16) -> dict[str, Any]:
    """An input of the usual form. What it holds makes no difference. `length`: tokens of a text.

    Errors: LoadError, InputError.
    """
    length = min(length, loaded.positions or length)
    if loaded.kind == "causal":
        ids = loaded.processor(" ".join([_TEXT] * length), return_tensors="pt")["input_ids"][:, :length]
        return {"input_ids": ids, "use_cache": False}
    if loaded.task.medium is None:
        inputs = loaded.examples([_TEXT], length)[0]
    else:
        inputs = loaded.encode_file(typical_items(loaded.task)[0])
    if loaded.task.writes:
        inputs = {**inputs, "decoder_input_ids": torch.tensor([chat_of(loaded).start])}
    return inputs


def typical_items(task: Task) -> list[Any]:
    """Two images, or two recordings, of different sizes."""
    if task.kind == "image":
        from PIL import Image

        return [Image.new("RGB", size, (90, 120, 150)) for size in ((64, 64), (96, 64))]
    return [calibration_recordings(seconds, task.feature_extractor.sampling_rate, 1)[0] for seconds in (1, 2)]
