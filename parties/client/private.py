"""`make_private`: a model that answers without its owner seeing the question, with the face of the model itself."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...approximations import Plan
from ...models.compile import Compiled, Logged, compile, part_of
from ...models.delegated.head import head_of
from ...models.loading.accepted import loaded_of, module_of
from ...models.program.scales import Precision
from ...models.weight_owners import PRIVATE, PUBLIC, Weights, weight_owners
from ...protocols.errors import BlindformerError
from ..receipts.receipt import Prices, Receipt, issue
from ..registry import DEFAULT, PRIVATE_HEAD, find_talking, protocol_for, resolve
from ..reports.report import Report
from ..session.online import Progress
from .base import BaseClient
from .client import open_here
from .local import LocalProtocol, find_local
from .session import Session

if TYPE_CHECKING:
    from ...models.loading.load import Loaded

Inputs = Mapping[str, Any]
_FEW = 2  # with fewer calibration batches than this, ranges are guesses


class PrivateError(BlindformerError):
    """A private model that is asked for something it cannot do."""


def make_private(
    model: nn.Module | Loaded | str | Path,
    plan: Plan | str | None = None,
    protocol: str = "beaver",
    *,
    example: Inputs | None = None,
    calibration: Sequence[Inputs] | Inputs | None = None,
    parties: int = 2,
    outputs: list[str] | None = None,
    embedding: str = "client",
    weights: Weights | None = None,
    precision: Precision | None = None,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    threads: int = 1,
    device: str = "cpu",
    dealer: str | None = None,
    pad: bool = False,
    client_memory: str = "",
    timeout: float = 120,
    progress: Progress | None = None,
) -> PrivateModel:
    """Return a private version of a model, with its arguments, its output class and a language model's `generate`.

        private = bf.make_private(model, plan="faithful", calibration=batches)
        outputs = private(**tokenizer("nobody reads this", return_tensors="pt"))

    model        a module, a result of `load`, or a folder's or model's name
    plan         a preset's name or a plan (default: the one in the model's folder, else "faithful")
    protocol     "beaver": two parties and a dealer; "crypten": `parties` and a dealer, the first owns the model, the
                 second the data; "ckks": encrypted, for plan "he"; "clear": hides nothing
    example      inputs of the later shapes: compile now instead of at the first call
    calibration  one or more batches of typical inputs (default: the first query)
    embedding    "client": every client gets the embedding block (default); "private": the server keeps it
    weights      "private": the server's (default); "public": every computing party's; "private-head": public except
                 the last part; or patterns of names: {"public": ["model.*"], "rest": "private"}. With an adapter, its
                 base is public by default, and the server has the adapter; with "public", it stays in this process
    tokenizer    of a bare module, for `generate`
    generation   options of `compile_chat` for `generate`, such as {"slots": 512}
    threads      of each party
    device       where each party computes: "cpu", "cuda" or "cuda:1"
    dealer       "none", with protocol beaver: the two parties do without
    pad          with public weights: pad rows of a pass to a power of two, which hides their number
    client_memory  with public weights: memory for layers that are computed here, such as "200MB"; saves rounds
    timeout      seconds that a party may be silent

    `outputs`, `precision` and `progress` are those of `compile`.

    Raises PrivateError, and the errors of `compile` and of a session.
    """
    loaded = loaded_of(model)
    bare = isinstance(loaded, nn.Module)
    chosen = protocol_for(protocol, weights, embedding, heads=True)
    if weights == PRIVATE_HEAD:
        weights = {PRIVATE: [f"{head_of(module_of(loaded))}.*"], "rest": PUBLIC}
    else:
        protocol = chosen
    local = find_local(protocol, parties)
    local.check_device(device)
    if dealer is not None and protocol != DEFAULT:
        raise PrivateError(f"dealer {dealer}: is of protocol {DEFAULT} with private weights; leave it out")
    if (pad or client_memory) and not local.entry.as_it_is:
        name = "pad" if pad else "client_memory"
        raise PrivateError(f'{name}: is for models that run as they are; give weights="public", or leave it out')
    if tokenizer is not None and not bare:
        raise PrivateError("tokenizer: is for a bare module, and this model has its own; leave it out")
    if generation is not None and not (
        getattr(loaded, "can_generate", lambda: True)() if bare else loaded.kind == "causal"
    ):
        raise PrivateError("generation: is for a language model, and this one writes nothing; leave it out")
    if plan is None:
        plan = (None if isinstance(loaded, nn.Module) else loaded.plan()) or "faithful"
    whose = weights if bare else loaded.weights(weights)
    usual = (device, outputs, embedding) == ("cpu", None, "client")
    apart: PrivateModel | None = None
    if usual and local.entry.head and isinstance(plan, str) and not isinstance(whose, str | None):
        apart = resolve(local.entry.head)(module_of(loaded), plan, local, weight_owners(whose))
    private = apart or resolve(local.entry.private)(module_of(loaded), plan, local)
    batches = [calibration] if isinstance(calibration, Mapping) else calibration or []
    private.calibration = [private.bound(batch) for batch in batches]
    private.options = {"outputs": outputs, "embedding": embedding, "weights": whose, "precision": precision}
    private.options["progress"] = compiling = part_of(progress or Logged(), 0, 1, "compile: ")
    private.session_options = {"threads": threads, "timeout": timeout, "progress": progress}
    private.pad, private.client_memory = pad, client_memory
    if device != "cpu":
        private.session_options["device"] = device
    if dealer is not None:
        private.session_options["dealer"] = dealer
    private.source = (loaded, tokenizer)
    private.generation = {"embedding": embedding, "weights": weights, "progress": compiling, **(generation or {})}
    if example is not None:
        private.prepare(example)
    return private


class PrivateModel:
    """A private model, as `make_private` returns it. One session stays open between calls of the same shapes, until
    `close`.

    report    cost of the last call, and who learned what
    compiled  the program of the last call
    """

    def __init__(self, model: nn.Module, plan: Plan | str, local: LocalProtocol) -> None:
        self.model, self.plan, self._local = model, plan, local
        self.calibration: list[Inputs] = []
        self.options: dict[str, Any] = {}
        self.session_options: dict[str, Any] = {}
        self.pad, self.client_memory = False, ""
        self.report: Report | None = None
        self.compiled: Compiled | None = None
        self.source: tuple[nn.Module | Loaded, Any] = (model, None)  # and the tokenizer of a bare module
        self.generation: dict[str, Any] = {}  # options of `compile_chat`
        self._programs: dict[tuple, Compiled] = {}  # by shapes
        self._session: Session | None = None
        self._of: Compiled | None = None  # whose session is open
        self._chat_folder: TemporaryDirectory[str] | None = None  # of `generate`
        self._client: BaseClient | None = None

    def __call__(self, *values: Any, **named: Any) -> Any:
        """One private query, with the model's own arguments. Tensors are the query; other arguments are compiled in."""
        inputs = self.bound(named, values)
        compiled = self.prepare(inputs)
        tensors = {n: v for n, v in inputs.items() if isinstance(v, Tensor)}
        session = self._open(compiled)
        try:
            reply = session.ask(tensors)
            outputs = reply.outputs()
        except BaseException:
            if not session.open:
                self.close()
            raise
        self.report = reply.report
        return compiled.answer(outputs)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Continue prompts [B, n], as transformers' `generate` does. Returns token ids, prompts included.

        input_ids       each row begins with the compiled prefix: the chat template's beginning, else the model's first
                        token
        attention_mask  marks padding; rows are answered one after the other
        options         of `generate`: max_new_tokens, do_sample, streamer; no beams. `slots` limits the length
                        (default: 256)

        The first call compiles the model. `report` does not change.

        Raises GenerationError, PrivateError, and the errors of a session.
        """
        if self._client is None:
            find_talking(self._local.entry.name)
            folder = self._chat_folder = self._chat_folder or self._compile_chat()
            given = {name: value for name, value in self.session_options.items() if name != "threads"}
            self._client = open_here(self._local, folder.name, **given)
        return self._client.kept_conversation().generate(input_ids, attention_mask, **options)

    def receipt(self, prices: Prices = None) -> Receipt:
        """Return what all parties of the open sessions state, with costs. `prices`: settings of [prices], such as
        {"currency": "EUR", "gb": {"server": 0.08}}. Raises ReceiptError if the protocol has no receipts.
        """
        sessions = [] if self._session is None else [self._session.vouched()]
        return issue(sessions + ([] if self._client is None else self._client.sessions.vouched()), prices)

    def prepare(self, inputs: Inputs) -> Compiled:
        """Compile for the shapes of `inputs`, unless that was done."""
        inputs = self.bound(inputs)
        shapes = shapes_of(inputs)
        if shapes not in self._programs:
            batches = [batch for batch in self.calibration if shapes_of(batch) == shapes]
            if self.calibration and not batches:
                raise PrivateError(_mismatch(shapes, shapes_of(self.calibration[0])))
            if not batches:
                batches = [inputs]
            if len(batches) < _FEW and not (isinstance(self.plan, Plan) and self.plan.ranges):
                warnings.warn(
                    "calibrating on one example: other inputs may leave its ranges; pass calibration=[...], dozens",
                    stacklevel=3,
                )
            self._programs[shapes] = compile(self.model, batches, self.plan, **self.options)
        self.compiled = self._programs[shapes]
        return self.compiled

    def bound(self, named: Inputs, values: Sequence[Any] = ()) -> dict[str, Any]:
        """Arguments of the model by name, without those that are None."""
        signature, inputs = inspect.signature(self.model.forward), {}
        try:
            arguments = signature.bind(*values, **named).arguments
        except TypeError as error:
            raise PrivateError(f"inputs: {error}; the model takes {', '.join(signature.parameters)}") from None
        for name, value in arguments.items():
            rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            inputs |= value if rest else {name: value}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        for name, value in inputs.items():
            if not (isinstance(value, Tensor) or _plain(value)):
                raise PrivateError(f"input {name}: is a {type(value).__name__}; give a tensor")
        if not any(isinstance(value, Tensor) for value in inputs.values()):
            raise PrivateError("inputs: hold no tensor; give what the model is to be asked, as tensors")
        return inputs

    def close(self) -> None:
        """End the session and its processes. The model can be called again; that opens a new one."""
        client, session, self._client, self._session, self._of = self._client, self._session, None, None, None
        for opened in (client, session):
            if opened is not None:
                opened.close()

    def __enter__(self) -> PrivateModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _compile_chat(self) -> TemporaryDirectory[str]:
        """For answers token by token. Errors: GenerationError, those of `compile`."""
        from ...models.generation.folder import compile_chat_folder
        from ...models.loading.load import loaded_with

        loaded, tokenizer = self.source
        if isinstance(loaded, nn.Module):
            if tokenizer is None:
                raise BlindformerError(
                    f"{type(loaded).__name__}: has no tokenizer; give make_private(..., tokenizer=tokenizer), or a "
                    "folder's name"
                )
            loaded = loaded_with(loaded, tokenizer, "causal")
        folder = TemporaryDirectory(prefix="blindformer-")
        ids = [row for batch in self.calibration for row in batch["input_ids"]]
        texts = loaded.processor.batch_decode(ids, skip_special_tokens=True) if ids else None
        compile_chat_folder(loaded, folder.name, plan=self.plan, **{"texts": texts, **self.generation})
        return folder

    def _open(self, compiled: Compiled) -> Session:
        if self._session is None or self._of is not compiled:
            self.close()
            self._session = self._local.open(compiled, **self.session_options)
            self._of = compiled
        return self._session


def _plain(value: Any) -> bool:
    """Whether an argument is a setting, not data: a value, or a tuple of such."""
    return (
        all(_plain(item) for item in value) if isinstance(value, tuple) else isinstance(value, bool | int | float | str)
    )


def shapes_of(inputs: Inputs) -> tuple:
    """What a program is compiled for: shapes of tensors, and the values of everything else."""
    return tuple((n, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for n, v in sorted(inputs.items()))


def _mismatch(asked: tuple, calibrated: tuple) -> str:
    """Why inputs of these shapes cannot be answered by what was calibrated, and what to change."""
    ours, theirs = dict(asked), dict(calibrated)
    for name in sorted({*ours, *theirs}):
        if name not in theirs:
            return f"input {name}: no calibration batch has it; leave it out, or put it into the calibration, too"
        if name not in ours:
            return f"input {name}: is missing, and the calibration batches have it; give it, or calibrate without"
    name = next(name for name in ours if ours[name] != theirs[name])
    one, other = ours[name], theirs[name]
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return f"input {name}: is not as in the calibration batches; give both the same"
    why = f"input {name}: no calibration batch has its shape {list(one)}, the first has {list(other)}"
    if len(one) == len(other) > 1 and one[0] == other[0]:
        return f"{why}; pad both to one length" if len(one) == 2 else f"{why}; make both of one size"
    rows = one[1:] == other[1:]
    return f"{why}; calibrate on batches of {one[0]} rows" if rows else f"{why}; calibrate on inputs of this shape"
