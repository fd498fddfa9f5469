"""`make_private`: a model that answers without its owner seeing the question, with the face of the model itself."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..approximations import Plan
from ..models.compile import Compiled, compile, decode_outputs
from ..models.interpreter import interpret
from ..models.scales import Precision
from ..protocols.clear import ClearEngine
from ..protocols.errors import BlindformerError
from .kinds import KINDS, REFERENCE, Session, find_kind
from .launcher import Progress
from .many.roster import numbered
from .report import Report, clear_report
from .threads import ThreadParties

Inputs = Mapping[str, Any]
IN_THREADS = "beaver"  # CrypTen's state belongs to a process
_FEW = 2  # with fewer calibration batches than this, ranges are guesses


class InsecureProtocol(UserWarning):
    """A protocol that hides less than the others, for comparison."""


class PrivateError(BlindformerError):
    """A private model that is asked for something it cannot do."""


def make_private(
    model: nn.Module,
    plan: Plan | str = "faithful",
    protocol: str = "beaver",
    *,
    example: Inputs | None = None,
    calibration: Sequence[Inputs] | None = None,
    parties: int = 2,
    where: str = "processes",
    outputs: list[str] | None = None,
    embedding: str = "client",
    precision: Precision | None = None,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
) -> PrivateModel:
    """A callable with the model's keyword arguments that returns the model's own output class.

    plan         a preset's name, or a plan (calibrated or not)
    protocol     "beaver": two parties and a dealer; "crypten": `parties` and a dealer, the first owns the model, the
                 second the data; "ckks": encrypted, for plan "he"; "clear": the reference, which hides nothing;
                 "crypten-insecure": for comparison
    example      inputs of the shapes to come: compiles now instead of at the first call
    calibration  batches of inputs with the shapes of the queries; without them the first inputs calibrate: thin
    where        "processes": processes of this machine over TLS; "threads": three threads of this one, for tests
    outputs      names of the model's outputs to compute and reveal (default: all)
    embedding    "client": the embedding block is released to the client; "private": it stays with the server
    timeout      seconds of silence allowed between parties

    Errors: PrivateError, and those of `compile` and of a session.
    """
    if protocol != REFERENCE and (insecure := find_kind(protocol, parties).insecure):
        warnings.warn(f"protocol {protocol}: {insecure}", InsecureProtocol, stacklevel=2)
    if where == "threads" and protocol not in (IN_THREADS, REFERENCE):
        raise PrivateError(f"where='threads': protocol {protocol} needs a process for each party; choose processes")
    if where not in ("processes", "threads"):
        raise PrivateError(f"where={where!r}: choose processes or threads")
    private = PrivateModel(model, plan, protocol, where, parties)
    private.calibration = list(calibration or [])
    private.options = {"outputs": outputs, "embedding": embedding, "precision": precision}
    private.session_options = {"threads": threads, "timeout": timeout, "progress": progress}
    if example is not None:
        private.prepare(example)
    return private


class PrivateModel:
    """Made by `make_private`. One session is kept open between calls of the same shapes; close it, or use `with`.

    `report`: cost and who learned what, of the last call. `compiled`: the program of the last call's shapes.
    """

    def __init__(self, model: nn.Module, plan: Plan | str, protocol: str, where: str, parties: int = 2) -> None:
        self.model, self.plan, self.protocol, self.where = model, plan, protocol, where
        self.roster = numbered(parties)
        self.calibration: list[Inputs] = []
        self.options: dict[str, Any] = {}
        self.session_options: dict[str, Any] = {}
        self.report: Report | None = None
        self.compiled: Compiled | None = None
        self._programs: dict[tuple, Compiled] = {}  # by shapes
        self._session: Session | None = None
        self._of: Compiled | None = None  # whose session is open
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, **inputs: Any) -> Any:
        """One private query. Tensors must have the model's input names; other arguments are compiled in."""
        compiled = self.prepare(inputs)
        tensors = {n: v for n, v in inputs.items() if isinstance(v, Tensor)}
        if self.protocol == REFERENCE:
            found = self._in_the_clear(compiled, tensors)
        else:
            session = self._open(compiled)
            try:
                answer = session.query(tensors)
            except BaseException:
                if not session.open:
                    self.close()
                raise
            found = answer.outputs
            self.report = KINDS[self.protocol].report(self.roster)(
                compiled.program,
                compiled.plan.name,
                answer.timings,
                answer.others,
                session.setup_s,
                session.setup_bytes,
            )
        return compiled.answer(found)

    def prepare(self, inputs: Inputs) -> Compiled:
        """Compile for the shapes of `inputs`, if that is not done yet."""
        shapes = _shapes(inputs)
        if shapes not in self._programs:
            batches = [batch for batch in self.calibration if _shapes(batch) == shapes]
            if self.calibration and not batches:
                raise PrivateError(
                    f"no calibration batch has these inputs' shapes ({_describe(shapes)}); pad both to one length"
                )
            if not batches:
                batches = [inputs]
            if len(batches) < _FEW and not (isinstance(self.plan, Plan) and self.plan.ranges):
                warnings.warn(
                    "calibrating on one example: other inputs may leave the ranges it shows; "
                    "pass calibration=[...] with some dozens of typical batches",
                    stacklevel=3,
                )
            self._programs[shapes] = compile(self.model, batches, self.plan, **self.options)
        self.compiled = self._programs[shapes]
        return self.compiled

    def close(self) -> None:
        """End the session and its processes. The model can be called again; that opens a new one."""
        session, self._session, self._of = self._session, None, None
        if session is not None:
            session.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> PrivateModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _open(self, compiled: Compiled) -> Session:
        if self._session is not None and self._of is compiled:
            return self._session
        self.close()
        options = dict(self.session_options)
        if self.where == "threads":
            options.pop("threads")
            session: Session = ThreadParties(compiled, **options)
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="blindformer-")
            kind, folder = KINDS[self.protocol], Path(self._folder.name)
            kind.save(compiled, folder)
            session = kind.start(folder, self.roster, **options)
        self._session, self._of = session, compiled
        return session

    def _in_the_clear(self, compiled: Compiled, inputs: Inputs) -> dict[str, Tensor]:
        started = time.perf_counter()
        engine = ClearEngine({**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants})
        found = decode_outputs(compiled.program, interpret(compiled.program, engine).outputs)
        self.report = clear_report(compiled.program, compiled.plan.name, time.perf_counter() - started)
        return found


def _shapes(inputs: Inputs) -> tuple:
    """What a program is compiled for: shapes of tensors, and the values of everything else."""
    return tuple((n, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for n, v in sorted(inputs.items()))


def _describe(shapes: tuple) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes if isinstance(shape, tuple))
