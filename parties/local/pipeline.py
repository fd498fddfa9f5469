"""`pipeline`: a task and a model, as transformers has it, and answers that are computed privately."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ...approximations import Plan
from ...models.artifacts import load_client
from ...models.building import compile_folder, own_plan
from ...models.cached import cached, is_compiled
from ...models.generation.folder import compile_chat_folder, found_or_compiled
from ...models.loading.load import PACKAGED_NAMES, Loaded, load, loaded_with
from ...models.loading.task import Task
from ...models.unfinished import Unfinished
from ..client.base import BaseClient
from ..client.transport import ClientError
from ..config import load_settings
from ..launch import LOCAL
from ..registry import DEFAULT, find_talking, open_client
from .client import LocalClient
from .protocols import find_local

GENERATION, FEATURES = "text-generation", "feature-extraction"
TASKS = {  # and the kind of model that answers it (Task.kind)
    FEATURES: "encoder",
    "text-classification": "classifier",
    "token-classification": "tokens",
    "question-answering": "span",
    "fill-mask": "masked",
    "sentence-embedding": "sentence",
    "image-classification": "image",
    "audio-classification": "sound",
    GENERATION: "causal",
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}  # transformers has these, too


def pipeline(
    task: str | None = None,
    model: str | Path | Loaded | nn.Module | None = None,
    protocol: str = DEFAULT,
    *,
    tokenizer: Any = None,
    plan: Plan | str | None = None,
    lengths: Sequence[int] | None = None,
    calibration: Sequence[Any] | None = None,
    embedding: str = "client",
    generation: Mapping[str, Any] | None = None,
    parties: int = 2,
    server: str = LOCAL,
    **options: Any,
) -> BaseClient:
    """A client of the model that takes what the transformers pipeline of `task` takes and gives what that gives.

        with bf.pipeline("text-classification", model="./my-model") as classify:
            print(classify("nobody reads this"))

    task         one of TASKS (default: the model's own)
    model        a folder, a Hugging Face id, minilm, minilm-fast or smollm2; a folder that compile wrote; what `load`
                 returned; or a module of transformers, with `tokenizer` (of images or sounds: its processor)
    protocol     "beaver", "crypten" among `parties`, "ckks" with plan "he"; "clear": the reference, which hides nothing
    plan         a preset's name, or a plan (default: the one in the model's folder, else faithful)
    lengths      tokens that texts are padded to, each to the least that fits (default: 32, 64 and 128)
    calibration  typical texts (default: built-in ones), or images or sounds: files or folders. Never a user's
    embedding    "client": the embedding block is released to the client; "private": it stays with the server
    generation   of a language model: system, slots (tokens of a conversation), window, reveal: as of `compile_chat`
    server       "local": the parties run on this machine; or "host:port", with a folder that compile wrote
    options      of the protocol's client: dealer, certificates, config, timeout, progress, ...

    A model's folder is compiled at the first use, into the cache (client.cache of the configuration), and found there
    afterwards. Of many items, the error of one stands in the place of its answer (BaseClient.__call__).

    Errors: ClientError, LoadError, and those of `compile_folder` and of the protocol's client.
    """
    task = None if task is None else _known(task)
    local = find_local(protocol, parties)
    if task == GENERATION:
        find_talking(protocol)
    if model is None:
        raise ClientError(f"model: give a model's folder, a Hugging Face id, {PACKAGED_NAMES}")
    if server != LOCAL and not local.entry.served:
        raise ClientError(f"protocol {protocol}: its parties run on this machine here; leave server out")
    kept = TemporaryDirectory(prefix="blindformer-")
    try:
        if isinstance(model, str | Path) and is_compiled(model):
            folder = Path(model).expanduser()
            _check(load_client(folder).task, task, folder)
        elif server != LOCAL:
            raise ClientError(
                f"server {server}: is asked with the client's part of what compile wrote; give its folder"
            )
        else:
            config = options.get("config")
            made = _Making(task, tokenizer, plan, lengths, calibration, embedding, generation or {})
            cache = load_settings(None if config is None else Path(config)).client.cache.expanduser()
            folder = made.found(model, cache) or made.compiled(model, Path(kept.name))
        if local.entry.served:
            client = open_client(protocol, server, folder=folder, **options)
        else:
            client = LocalClient(local, folder, **options)
    except BaseException:
        kept.cleanup()
        raise
    client.held.callback(kept.cleanup)
    return client


@dataclass(frozen=True)
class _Making:
    """How a model is compiled: arguments of `pipeline`."""

    task: str | None
    tokenizer: Any
    plan: Plan | str | None
    lengths: Sequence[int] | None
    calibration: Sequence[Any] | None
    embedding: str
    generation: Mapping[str, Any]

    def found(self, model: Any, cache: Path) -> Path | None:
        """In the cache, where it is written if it is not there; None for a model or options that have no name there."""
        options = _named(self.lengths, self.calibration, self.embedding)
        if not isinstance(model, str | Path) or self.task is None or options is None:
            return None
        if self.task != GENERATION:
            named = {"pipeline": self.task, "options": options}
            return cached(model, cache, lambda *into: self._write(load(model), *into), self.plan, named)
        if self.calibration is not None:
            return None
        return found_or_compiled(model, cache, plan=self.plan, embedding=self.embedding, **self.generation)

    def compiled(self, model: Any, folder: Path) -> Path:
        """Written into `folder`."""
        if isinstance(model, nn.Module):
            if self.task is None or self.tokenizer is None:
                name = type(model).__name__
                raise ClientError(f"{name}: is a module; give its task and its tokenizer (or processor), too")
            return self._write(loaded_with(model, self.tokenizer, TASKS[self.task]), folder, self.plan or "faithful")
        loaded = model if isinstance(model, Loaded) else load(model)
        return self._write(loaded, folder, own_plan(loaded.folder) if self.plan is None else self.plan)

    def _write(self, loaded: Loaded, folder: Path, plan: Plan | str, kept: Unfinished | None = None) -> Path:
        if self.task == FEATURES and loaded.task.medium is None and loaded.kind not in ("tensors", "encoder"):
            loaded = loaded.without_head()
        _check(loaded.task, self.task, loaded.name)
        options: dict[str, Any] = {"plan": plan, "embedding": self.embedding, "kept": kept}
        if loaded.kind == "causal":
            return compile_chat_folder(loaded, folder, texts=self.calibration, **options, **self.generation)
        if loaded.kind == "encoder":
            options["outputs"] = ["last_hidden_state"]
        return compile_folder(loaded, folder, lengths=self.lengths, calibration=self.calibration, **options)


def _known(task: str) -> str:
    task = ALIASES.get(task, task)
    if task not in TASKS:
        raise ClientError(f"task {task!r}: is not known; choose one of {', '.join(TASKS)}")
    return task


def _check(found: Task, wanted: str | None, model: object) -> None:
    """Errors: ClientError for a task that the model is not for."""
    own = GENERATION if found.kind == "causal" else found.pipeline
    if wanted is not None and own != wanted:
        raise ClientError(f"{model}: answers {own}, not {wanted}; leave the task out, or give another model")


def _named(*options: Any) -> str | None:
    """A name of these options; None if they have no form in JSON, such as images in memory."""
    try:
        return hashlib.sha256(json.dumps(options).encode()).hexdigest()
    except TypeError:
        return None
