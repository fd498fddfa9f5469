"""What commands share: options, the two formats, and progress. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import enum
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

MB = 1e6


class Format(enum.StrEnum):
    text = "text"
    json = "json"


class Protocol(enum.StrEnum):
    beaver = "beaver"
    crypten = "crypten"
    ckks = "ckks"
    crypten_insecure = "crypten-insecure"
    clear = "clear"


class Door(enum.StrEnum):
    """Protocols that are served (parties/doors.py)."""

    beaver = "beaver"
    ckks = "ckks"


FormatOption = Annotated[Format, typer.Option("--format", help="text, or one JSON object on stdout.")]
PlanOption = Annotated[
    str, typer.Option("--plan", help="A preset (faithful, fast) or a plan's JSON file; see `blindformer list plans`.")
]
OwnPlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="A preset (faithful, fast) or a plan's JSON file (default: the model's own plan.json, else faithful).",
    ),
]
LengthOption = Annotated[
    str, typer.Option("--length", help="auto (a bucket hides the length), exact, or a number of tokens.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of each party.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="Seconds that a party may be silent.")]
PairOption = Annotated[
    list[str] | None,
    typer.Option("--pair", help="The text that a question is about, or the second of two texts; once for each text."),
]
EmbeddingOption = Annotated[
    str, typer.Option("--embedding", help="client: the embedding block is released to it; private: it stays.")
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option("--calibrate", help="Texts to calibrate on, one a line (default: built-in ones)."),
]


def prepare() -> None:
    """Quiet the libraries that write to the terminal uninvited."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def use_threads(count: int) -> None:
    """Threads of this process while it compiles. More than the cores that are free make torch many times slower."""
    import torch

    torch.set_num_threads(count)


def read_plan(name: str) -> Any:
    """A preset's name as it is, or the plan in a JSON file."""
    from ...approximations import Plan
    from ...approximations.errors import PlanError

    path = Path(name)
    if path.suffix != ".json":
        Plan.preset(name)  # a miss names the presets, before anything slow happens
        return name
    try:
        return Plan.model_validate_json(path.read_text())
    except OSError as error:
        raise PlanError(f"{name}: cannot be read ({error.strerror}); give a preset or a plan's JSON file") from None
    except ValueError as error:
        raise PlanError(f"{name}: is no plan ({str(error).splitlines()[0]}); write it with Plan.save") from None


def warn_untrained(plan: Any, own: Any = None) -> None:
    """Say, on stderr, when a plan's answers mean nothing for a model that was not trained with its functions.

    own: the plan in the model's folder, which `distill` and `federate` leave there: the one it was trained with.
    """
    if plan.needs_distillation() and not (own is not None and own.same_functions(plan)):
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"note: plan {plan.name} is for models trained with it (distill, federate); "
            "with other weights its answers are far off"
        )


def read_texts(path: Path | None) -> list[str] | None:
    """One text a line; None if there is no file."""
    from ...protocols.errors import BlindformerError

    if path is None:
        return None
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BlindformerError(f"{path}: cannot be read ({error}); give a text file, one text a line") from None
    if not texts:
        raise BlindformerError(f"{path}: holds no texts; write one a line")
    return texts


def emit(value: dict[str, Any]) -> None:
    """The one JSON object of `--format json`."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def console() -> Console:
    """For results. Wide enough for a table even where nobody looks."""
    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 120)


def table(*columns: str, title: str | None = None, right: tuple[int, ...] = ()) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number in right else "left", overflow="fold")
    return made


class Phases:
    """Progress on stderr: one bar a phase on a terminal, nothing elsewhere. Keeps each phase's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        terminal = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(40),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def begin(self, phase: str, total: float | None = None) -> None:
        self._started[phase] = time.perf_counter()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, note="")
        else:
            self._bars.reset(self._tasks[phase], total=total)

    def end(self, phase: str) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - self._started.pop(phase)
        self._bars.update(self._tasks[phase], total=1, completed=1, note="")

    def note(self, phase: str, text: str) -> None:
        self._bars.update(self._tasks[phase], note=text)

    def step(self, phase: str, done: int, total: int) -> None:
        """A party's report of progress (the signature that sessions call)."""
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, note="")
        self._bars.update(self._tasks[phase], completed=done, total=total)
        if phase == "online" and "offline" in self._tasks:
            self._bars.update(self._tasks["offline"], completed=1, total=1)

    def __enter__(self) -> Phases:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
