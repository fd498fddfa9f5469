"""`pipeline`: a task and a model, as transformers has it, and answers that are computed privately."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import EllipsisType
from typing import Any

from torch import nn

from ...approximations import Plan
from ...models.artifacts import adapter_place, load_client
from ...models.building import compile_folder, own_plan
from ...models.cached import cached, is_compiled, marks_of
from ...models.compile import Logged, Progress, check_embedding, part_of
from ...models.delegated.building import found_or_delegated
from ...models.generation.chat import compile_chat
from ...models.generation.encoder_decoder import compile_seq2seq
from ...models.generation.folder import compile_chat_folder, compile_seq2seq_folder, found_or_compiled, talks
from ...models.generation.seq2seq import prefixes
from ...models.loading.load import Loaded, load, loaded_with
from ...models.loading.media import MEDIA
from ...models.loading.packaged import GIVE_MODEL
from ...models.loading.task import WRITTEN, Task
from ...models.loading.truncation import IN_PYTHON, Truncation, truncation_of
from ...models.weight_owners import Weights, weight_owners
from ..config import load_settings
from ..launch import LOCAL, NO_DEALER
from ..registry import DEFAULT, PRIVATE_HEAD, client_of, compiled_for, find_talking, protocol_for
from .base import BaseClient
from .client import LocalClient, open_here
from .local import find_local
from .session import ClientError

GENERATION, FEATURES = "text-generation", "feature-extraction"
TASKS = {  # and the kind of model that answers it (Task.kind)
    FEATURES: "encoder",
    "text-classification": "classifier",
    "token-classification": "tokens",
    "question-answering": "span",
    "fill-mask": "masked",
    "sentence-embedding": "sentence",
    "image-classification": "image",
    "audio-classification": "audio",
    "translation": "translation",
    "summarization": "summary",
    "text2text-generation": "text",
    "automatic-speech-recognition": "speech",
    GENERATION: "causal",
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}  # transformers has these, too
_PAIR = re.compile("translation_[^_]+_to_[^_]+")  # and these: of the languages of a translation


def pipeline(
    task: str | None = None,
    model: str | Path | Loaded | nn.Module | None = None,
    protocol: str = DEFAULT,
    *,
    tokenizer: Any = None,
    plan: Plan | str | None = None,
    lengths: Sequence[int] | None = None,
    truncation: Truncation | bool | str | None = None,
    calibration: Sequence[Any] | None = None,
    embedding: str = "client",
    weights: Weights | None = None,
    adapter: str | Path | None = None,
    generation: Mapping[str, Any] | None = None,
    parties: int = 2,
    server: str = LOCAL,
    top_k: int | EllipsisType | None = ...,
    **options: Any,
) -> BaseClient:
    """Return a private client that is called like the transformers pipeline of `task`.

        with bf.pipeline("text-classification", model="./my-model") as classify:
            print(classify("nobody reads this"))

    task         a pipeline's name, or "translation_en_to_de" (default: the model's own task)
    model        a folder, a hub id, a packaged model, a compiled folder, a result of `load`, or a transformers module
    protocol     "beaver", "crypten" among `parties`, "ckks" with plan "he", or "clear", which hides nothing
    tokenizer    of a bare module: its tokenizer or processor
    lengths      padded lengths in tokens; each text takes the shortest that fits (default: 32, 64 and 128)
    truncation   "off" or False: refuse longer texts (default); "end" or True: cut the end; "start": cut the beginning;
                 "windows": query overlapping parts and merge their answers. A call may set it, too
    calibration  typical texts, or files or folders of images or audio; never a user's (default: built-in texts)
    adapter      the folder of a LoRA adapter that peft saved; of a compiled folder, an adapter's name
    generation   options of a generative model: system, slots (tokens of a conversation or answer), window, reveal
    server       "local": all parties on this machine; or "host:port", with a compiled folder
    top_k        labels, tokens or spans of each answer; None: all labels (default: as in transformers)
    options      other arguments of the client: dealer, certificates, config, timeout, progress

    `plan`, `embedding` and `weights` are those of `make_private`.
    The model is compiled at its first use, and cached. In a list, an item's error takes the place of its answer.

    Raises ClientError, LoadError, and the errors of `compile_folder` and of the client.
    """
    pair = task if task is not None and _PAIR.fullmatch(task) else ""
    task = None if task is None else _known(task)
    if isinstance(model, str | Path) and protocol == DEFAULT:
        protocol = compiled_for(model) or protocol
    protocol = protocol_for(protocol, weights, embedding, heads=True)
    local = find_local(protocol, parties)
    if task == GENERATION:
        find_talking(protocol)
    if model is None:
        raise ClientError(f"model: none was given; {GIVE_MODEL}")
    if server != LOCAL and not local.entry.served:
        raise ClientError(f"protocol {protocol}: its parties run on this machine here; leave server out")
    cut = {} if truncation is None else {"truncate": truncation_of(truncation)}
    config = options.get("config")
    settings = load_settings(None if config is None else Path(config), **{"session.timeout": options.get("timeout")})
    _check_options(protocol, LocalClient if not local.entry.served else client_of(protocol), server, options)
    compilation = _Compilation(
        task,
        tokenizer,
        plan,
        lengths,
        calibration,
        embedding,
        weights,
        generation or {},
        options.get("progress"),
        None if adapter is None else Path(adapter),
        pair,
    )
    compilation.check()
    kept = TemporaryDirectory(prefix="blindformer-")
    try:
        if isinstance(model, str | Path) and is_compiled(model):
            making = {"tokenizer": tokenizer, "plan": plan, "lengths": lengths, "calibration": calibration}
            making |= {"generation": generation, "embedding": None if embedding == "client" else embedding}
            making |= {"weights": weights}
            _refuse(making, f"{model} is compiled already")
            folder = Path(model).expanduser()
            cut |= {} if adapter is None else {"adapter": str(adapter)}
            if not local.entry.as_it_is:
                _check(load_client(adapter_place(folder, str(adapter or ""))).task, task, folder)
        elif server != LOCAL:
            raise ClientError(
                f"server {server}: is asked with the client's part of what compile wrote; give its folder"
            )
        else:
            if local.entry.as_it_is and weights != PRIVATE_HEAD:
                making = {"lengths": lengths, "calibration": calibration}
                _refuse(making, "is for compiled models, and one of public weights runs as it is")
            if not isinstance(model, str | Path):
                _refuse({"adapter": adapter}, "is put on a model by its name; `load` it with its adapter")
            if not isinstance(model, nn.Module):
                _refuse({"tokenizer": tokenizer}, f"{getattr(model, 'name', model)} has its own")
            cache = settings.client.cache.expanduser()
            make = compilation.delegated if local.entry.as_it_is else compilation.cached
            cut |= {"adapter": adapter} if local.entry.as_it_is and adapter else {}
            folder = make(model, cache) or compilation.compiled(model, Path(kept.name))
        client = open_here(local, folder, server, **cut, **options)
        if local.entry.as_it_is:
            _check(client.part.task, task, client.part.name)
        if client.part.writes and task is not None:
            _check_pair(getattr(client.part.chat, "before", {}), pair, client.part.name)
            client.part.task = replace(client.part.task, kind=TASKS[task], pair=pair)
        client.ways = replace(IN_PYTHON, cut='truncation=True or "windows"')
    except BaseException:
        kept.cleanup()
        raise
    client.top_k = top_k
    client.on_close.callback(kept.cleanup)
    return client


@dataclass(frozen=True)
class _Compilation:
    """How a model is compiled: arguments of `pipeline`."""

    task: str | None
    tokenizer: Any
    plan: Plan | str | None
    lengths: Sequence[int] | None
    calibration: Sequence[Any] | None
    embedding: str
    weights: Weights | None
    generation: Mapping[str, Any]
    progress: Progress | None
    adapter: Path | None
    pair: str

    def check(self) -> None:
        """What can be said before a model is loaded. Errors: ClientError, PlanError, ProgramError."""
        if isinstance(self.plan, str):
            Plan.preset(self.plan)
        check_embedding(self.embedding)
        if self.weights not in (None, PRIVATE_HEAD):
            weight_owners(self.weights)
        if isinstance(self.calibration, str | bytes | Path):
            raise ClientError("calibration: is one item; give a list of typical ones")
        lengths = [self.lengths] if isinstance(self.lengths, int | str) else self.lengths or ()
        if wrong := [length for length in lengths if isinstance(length, bool | str) or length < 1]:
            raise ClientError(f"lengths: {wrong[0]!r} is no number of tokens; give some such as 32, 64 and 128")
        if isinstance(self.lengths, int):
            raise ClientError(f"lengths: is one number; give a list: lengths=[{self.lengths}]")
        if self.task is not None:
            self._check_generation(self.task)

    def _check_generation(self, task: str) -> None:
        """Errors: ClientError for what a model of this task has no use for."""
        if self.generation and task not in (GENERATION, *WRITTEN):
            raise ClientError(f"generation: is for models that generate, and {task} is asked for; leave it out")
        known = {*inspect.signature(compile_seq2seq if task in WRITTEN else compile_chat).parameters}
        known |= {"seconds"} if TASKS.get(task) == "speech" else set()
        if unknown := [name for name in self.generation if name not in known]:
            raise ClientError(f"generation: {unknown[0]} is no option of such a model; see bf.make_private")

    def cached(self, model: Any, cache: Path) -> Path | None:
        """In the cache, where it is written if it is not there; None for a model or options that have no name there."""
        options = _named(self.lengths, self.calibration, self.embedding, self.weights)
        if not isinstance(model, str | Path) or options is None:
            return None
        loaded = load(model, self.adapter) if self.task is None and (self.adapter or not talks(model)) else None
        task = self.task or (GENERATION if loaded is None else own_task(loaded.task))
        writes = task in WRITTEN
        self._check_generation(task)
        if task != GENERATION:
            named = {"pipeline": task, "options": options, **({"generation": dict(self.generation)} if writes else {})}
            named |= marks_of(self.adapter)
            return cached(
                model, cache, lambda *into: self._write(loaded or load(model, self.adapter), *into), self.plan, named
            )
        if self.calibration is not None or self.lengths is not None:
            return None
        given = {"plan": self.plan, "embedding": self.embedding, "weights": self.weights, "adapter": self.adapter}
        given |= self.generation
        return found_or_compiled(model, cache, progress=self._compiling(), **given)

    def delegated(self, model: Any, cache: Path) -> Path:
        """The same of a model that runs as it is. Errors: ClientError, too, for a module."""
        options: dict[str, Any] = {name: self.generation.get(name) for name in ("system", "seconds")}
        if unknown := self.generation.keys() - options.keys():
            raise ClientError(f"generation: {min(unknown)} is of compiled models; leave it out")
        if not isinstance(model, str | Path):
            raise ClientError("model: make_private runs a module with public weights; or give the name of its folder")
        if self.weights == PRIVATE_HEAD:
            options |= {"head": True, "lengths": self.lengths, "calibration": self.calibration}
        return found_or_delegated(model, cache, plan=self.plan, progress=self._compiling(), **options)

    def _compiling(self) -> Progress:
        return part_of(self.progress or Logged(), 0, 1, "compile: ")

    def compiled(self, model: Any, folder: Path) -> Path:
        """Written into `folder`."""
        if isinstance(model, nn.Module):
            if self.task is None or self.tokenizer is None:
                name = type(model).__name__
                raise ClientError(f"{name}: is a module; give its task and its tokenizer (or processor), too")
            return self._write(loaded_with(model, self.tokenizer, TASKS[self.task]), folder, self.plan or "faithful")
        loaded = model if isinstance(model, Loaded) else load(model, self.adapter)
        return self._write(loaded, folder, own_plan(loaded.folder) if self.plan is None else self.plan)

    def _write(self, loaded: Loaded, folder: Path, plan: Plan | str) -> Path:
        if loaded.kind == "causal":
            _refuse(
                {"lengths": self.lengths}, f"{loaded.name} answers token by token, in as many as generation's slots"
            )
        if self.task == FEATURES and loaded.task.medium is None and loaded.kind not in ("tensors", "encoder"):
            loaded = loaded.without_head()
        _check(loaded.task, self.task, loaded.name)
        _check_pair(prefixes(getattr(loaded.model, "config", None)), self.pair, loaded.name)
        self._check_generation(own_task(loaded.task))
        options: dict[str, Any] = {"plan": plan, "embedding": self.embedding, "weights": self.weights}
        options["progress"] = self._compiling()
        if loaded.kind == "causal":
            return compile_chat_folder(loaded, folder, texts=self.calibration, **options, **self.generation)
        if loaded.task.writes:
            options |= {"lengths": self.lengths, "calibration": self.calibration, **self.generation}
            return compile_seq2seq_folder(loaded, folder, **options)
        if loaded.kind == "encoder":
            options["outputs"] = ["last_hidden_state"]
        return compile_folder(loaded, folder, lengths=self.lengths, calibration=self.calibration, **options)


def _known(task: str) -> str:
    task = "translation" if _PAIR.fullmatch(task) else ALIASES.get(task, task)
    if task not in TASKS:
        raise ClientError(f"task {task!r}: is not known; choose one of {', '.join(TASKS)}")
    return task


def own_task(task: Task) -> str:
    return GENERATION if task.kind == "causal" else task.pipeline


def _check_options(protocol: str, client: type, server: str, options: Mapping[str, Any]) -> None:
    """Errors: ClientError for an option that the protocol's client has not."""
    known = inspect.signature(client).parameters.keys() - {"server", "local", "folder"}
    given = [name for name, value in options.items() if value is not None]
    if unknown := [name for name in given if name not in known]:
        raise ClientError(f"{unknown[0]}: the parties of protocol {protocol} have no use for it; leave it out")
    elsewhere = [name for name in given if options[name] != NO_DEALER] if server == LOCAL else []
    if deployed := [name for name in ("dealer", "helper", "certificates") if name in elsewhere]:
        raise ClientError(
            f'{deployed[0]}: "local" starts its parties and makes their certificates itself; leave it out'
        )


def _check(task: Task, wanted: str | None, model: object) -> None:
    """Errors: ClientError for a task that the model is not for."""
    own = own_task(task)
    if wanted in WRITTEN and own in WRITTEN and task.medium is MEDIA.get(TASKS[wanted]):
        return
    if wanted is not None and own != wanted:
        raise ClientError(f"{model}: answers {own}, not {wanted}; leave the task out, or give another model")


def _check_pair(before: Mapping[str, str], pair: str, model: object) -> None:
    """`before`: what stands before each text, by task. Errors: ClientError for languages that a model which knows them
    by it does not translate."""
    known = [task for task in before if _PAIR.fullmatch(task)]
    if pair and known and pair not in known:
        raise ClientError(f"{model}: has no task {pair}; choose one of {', '.join(known)}")


def _refuse(given: Mapping[str, Any], why: str) -> None:
    """Errors: ClientError for an argument that is given, and would change nothing."""
    if odd := next((name for name, value in given.items() if value is not None), None):
        raise ClientError(f"{odd}: {why}; leave it out")


def _named(*options: Any) -> str | None:
    """A name of these options; None if they have no form in JSON, such as images in memory."""
    try:
        return hashlib.sha256(json.dumps(options).encode()).hexdigest()
    except TypeError:
        return None
