"""A language model compiled into a folder of this process, to be talked to through parties of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn

from ...approximations import Plan
from ...protocols.errors import BlindformerError
from .protocols import LocalProtocol

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation
    from ...models.loading.load import Loaded


@dataclass
class LocalTalk:
    """`conversation` compiles once and opens a session; after `close` it opens another.

    tokenizer   of a bare module; what `load` returned has its own
    texts       batches of the model's inputs to calibrate on (default: built-in texts)
    compiled    how: options of `compile_chat`
    opened      options of the session

    Errors: GenerationError, those of `compile` and of a session.
    """

    model: nn.Module | Loaded
    tokenizer: Any
    plan: Plan | str
    protocol: LocalProtocol
    texts: Sequence[Mapping[str, Any]]
    compiled: Mapping[str, Any]
    opened: Mapping[str, Any]
    _folder: TemporaryDirectory[str] | None = None
    _undo: ExitStack = field(default_factory=ExitStack)
    _talk: Conversation | None = None

    def conversation(self) -> Conversation:
        if self._folder is None:
            self._folder = self._compile()
        if self._talk is None:
            self._talk = self._undo.enter_context(self.protocol.talk(self._folder.name, **self.opened))
        return self._talk

    def close(self) -> None:
        self._talk = None
        self._undo.close()

    def _compile(self) -> TemporaryDirectory[str]:
        from ...models.generation.folder import compile_chat_folder

        loaded, folder = self._loaded(), TemporaryDirectory(prefix="blindformer-")
        ids = [row for batch in self.texts for row in batch["input_ids"]]
        texts = loaded.processor.batch_decode(ids, skip_special_tokens=True) if ids else None
        compile_chat_folder(loaded, folder.name, plan=self.plan, **{"texts": texts, **self.compiled})
        return folder

    def _loaded(self) -> Loaded:
        from ...models.loading.load import Loaded, loaded_with

        if isinstance(self.model, Loaded):
            return self.model
        if self.tokenizer is None:
            raise BlindformerError(
                f"{type(self.model).__name__}: comes without a tokenizer, which tells what begins a text; give "
                "make_private(..., tokenizer=tokenizer), or a folder's name as the model"
            )
        return loaded_with(self.model, self.tokenizer, "causal")
