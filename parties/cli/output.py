"""What commands share: options, the two formats, and progress. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import enum
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..registry import in_words, priced, runs_here, served
from .items import read_lines

MB = 1e6
PATIENCE, PAUSE = 2.0, 10.0  # seconds until the first line about what takes long, and between lines
COMPILE_NOTES = 5  # of compiling one length: calibrate, export, lower, optimise, measure
PROGRESS = "BLINDFORMER_PROGRESS"  # "off" in the environment: no progress

# Here by name, so that help does not wait for torch; tests hold them to the registries.
PRIVATE_PLANS = ("faithful", "fast", "he")
PLANS = (*PRIVATE_PLANS, "exact")
_PRESET = f"A preset ({', '.join(PRIVATE_PLANS)}) or a plan's JSON file"


class Format(enum.StrEnum):
    text = "text"
    json = "json"


def choice(*known: str) -> Any:
    return click.Choice(known)


DEFAULT = "beaver"
RunsOption = Annotated[
    str, typer.Option("--protocol", click_type=choice(*runs_here()), help=f"{in_words(runs_here())}.")
]
PricedOption = Annotated[str, typer.Option("--protocol", click_type=choice(*priced()), help=f"{in_words(priced())}.")]
ServedOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        click_type=choice(*served()),
        help=f"{in_words(served(), lambda entry: entry.served.words if entry.served else '')}.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="text, or one JSON object on stdout.")]
PlanOption = Annotated[str, typer.Option("--plan", help=f"{_PRESET}; see `blindformer list plans`.")]
OwnPlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help=f"{_PRESET} (default: the model's own plan.json, else faithful).",
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
    typer.Option(
        "--calibrate", help="Texts to calibrate on, one a line (default: built-in ones); images: a folder of them."
    ),
]


def prepare() -> None:
    """Quiet the libraries that write to the terminal uninvited."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def use_threads(count: int) -> None:
    """Threads of this process while it compiles. More than the cores that are free make torch many times slower."""
    import torch

    torch.set_num_threads(count)


def read_plan(name: str, private: bool = True) -> Any:
    """A preset's name as it is, or the plan in a JSON file. `private`: one that runs on secrets. Errors: PlanError."""
    from ...approximations import Plan
    from ...approximations.errors import PlanError

    path = Path(name)
    if path.suffix != ".json":
        Plan.preset(name)  # a miss names the presets, before anything slow happens
        if private and name not in PRIVATE_PLANS:
            raise PlanError(
                f"plan {name}: is torch's own functions, which do not run on secrets; choose one of "
                f"{', '.join(PRIVATE_PLANS)}"
            )
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
    return None if path is None else [line for line in read_lines(path) if line]


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
    """Progress on stderr: a bar for each phase on a terminal, elsewhere a line now and then about what takes long.
    Keeps each phase's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        terminal = Console(stderr=True)
        wanted = os.environ.get(PROGRESS) != "off"
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(40),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=terminal,
            transient=True,
            disable=not (wanted and terminal.is_terminal),
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._now = ""
        self._over = threading.Event()
        plain = wanted and not terminal.is_terminal
        self._lines = threading.Thread(target=self._say_lines, daemon=True) if plain else None

    def begin(self, phase: str, notes: int = 1) -> None:
        """`notes`: how many there will be about; each is as much of the phase."""
        self._started[phase] = time.perf_counter()
        self._set(phase, total=notes, completed=0, note="")
        self._bars.reset(self._tasks[phase], total=notes)

    def end(self, phase: str) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - self._started.pop(phase)
        self._set(phase, total=1, completed=1, note="")

    def note(self, phase: str, text: str) -> None:
        """What is being done now. In a phase that was begun the one before is done with it."""
        task, done = self._task(phase), None
        if phase in self._started and task is not None and task.total is not None:
            done = min(task.completed + bool(task.fields["note"]), task.total - 1)
        self._set(phase, note=text, completed=done)

    def step(self, phase: str, done: int, total: int) -> None:
        """A party's report of progress (the signature that sessions call)."""
        self._set(phase, completed=done, total=total)
        if phase == "online" and "offline" in self._tasks:
            self._bars.update(self._tasks["offline"], completed=1, total=1)

    def __enter__(self) -> Phases:
        self._bars.start()
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._lines is not None:
            self._lines.join()
        self._bars.stop()

    def _set(self, phase: str, **what: Any) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=None, note="")
        self._bars.update(self._tasks[phase], **what)
        self._now = phase

    def _task(self, phase: str) -> Task | None:
        number = self._tasks.get(phase)
        return next((task for task in self._bars.tasks if task.id == number), None)

    def _say_lines(self) -> None:
        said, pause = "", PATIENCE
        while not self._over.wait(pause):
            task = self._task(self._now)
            if task is None or (task.total and task.completed >= task.total):
                continue
            part = f" {task.percentage:.0f}%" if task.total else ""
            line = f"{task.description}{part}  {task.fields['note']}".strip()
            if line != said:
                print(line, file=sys.stderr, flush=True)
                said, pause = line, PAUSE
