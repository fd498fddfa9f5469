"""Steps that several commands take: set up, read a plan, load a model, compile it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ...errors import BlindformerError
from ...levels import slow
from ...models.loading.packaged import PUBLISHED
from ..config import PricesSection, load_settings
from ..launch.fork_server import shared
from ..registry import DEFAULT, PRIVATE_HEAD, PUBLIC, deployed, find
from .options import PRIVATE_PLANS
from .output import note
from .progress import Phases

if TYPE_CHECKING:  # importing it takes seconds
    from ..receipts.receipt import Receipt

LAN = "lan"


@contextmanager
def loading(threads: int | None = None, notes: int = 2, parties: bool = False) -> Iterator[Phases]:
    """The progress of a command, in its phase `load`: libraries come now, to compute on so many threads.

    More threads than cores that are free make torch many times slower. `parties`: some will be started on this machine,
    whose libraries come beside the command's own.
    """
    forks = shared() if parties else None
    with Phases() as phases:
        phases.begin("load", notes)
        if notes > 1:
            phases.note("load", "libraries")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
            _note_slow()
        yield phases
    del forks  # held until here


@contextmanager
def compiling(phases: Phases) -> Iterator[Callable[[str, int, int], None]]:
    """The phase `compile`, which is told how much of it is done. Ctrl-C and SIGTERM end it, and the process, in a
    line."""
    phases.begin("compile")
    try:
        yield phases.of("compile")
    except (KeyboardInterrupt, SystemExit) as stop:
        note("stopped; the same command compiles it from the start")
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT) from None
    phases.end("compile")


def check_new(option: str, file: Path) -> None:
    """Before anything slow. Errors: BlindformerError for a file to write that is there, or whose folder is not."""
    if file.exists():
        raise BlindformerError(f"{option} {file}: is there already; give another name, or remove it")
    _check_folder(option, file)


def check_output(option: str, file: Path | None, what: str, *kinds: str) -> None:
    """The same of one that may be written over, if there is one. Errors: BlindformerError for another kind of file than
    `what` is, or one whose folder is not there."""
    if file is None:
        return
    if file.suffix not in kinds:
        raise BlindformerError(f"{option} {file}: is {what}; name a {' or '.join(kinds)} file")
    _check_folder(option, file)


def _check_folder(option: str, file: Path) -> None:
    if not file.absolute().parent.is_dir():
        raise BlindformerError(f"{option} {file}: its folder is not there; make it, or name another")


@cache
def _note_slow() -> None:
    """Once a process."""
    if why := slow():
        note("; ".join(why))


def cache_folder(config: Path | None = None) -> Path:
    """The folder of compiled models and masked weights."""

    return load_settings(config).client.cache


def can_write(folder: Path) -> bool:
    """Whether a folder is there or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def load_model(phases: Phases, model: str, plan: str | None = None, adapter: Path | None = None) -> tuple[Any, Any]:
    """The model, and the plan: as named, else the model's own, else faithful. Ends the phase's part on the model.

    Errors: PlanError, LoadError.
    """
    from ...models.building import own_plan
    from ...models.loading.load import load

    chosen = read_plan(plan) if plan else None
    phases.note("load", "the model")
    loaded = load(model, adapter)
    return loaded, own_plan(loaded.folder) if chosen is None else chosen


def for_network(plan: Any, network: Any) -> Any:
    """The plan, or the preset of this name, with fewer rounds where the network makes them dear."""
    from ...approximations import Plan

    return (Plan.preset(plan) if isinstance(plan, str) else plan).for_network(network.rtt, network.bandwidth)


Weights = Annotated[
    list[str] | None,
    Option(
        metavar="[PATTERN=]OWNER",
        help="private (default), public, private-head, or PATTERN=OWNER. May be repeated.",
    ),
]


def weights_of(given: list[str] | None) -> Any:
    """As `weights` of compile; None: nothing was said. Errors: BlindformerError."""
    patterns: dict[str, list[str]] = {"public": [], "private": []}
    rest = None
    for rule in given or []:
        pattern, _, owner = rule.rpartition("=")
        if owner not in patterns and rule != PRIVATE_HEAD:
            raise BlindformerError(
                f"--weights {rule}: give private, public or private-head, or a pattern, such as '*lora*=private'"
            )
        if pattern:
            patterns[owner].append(pattern)
        else:
            rest = owner
    if not any(patterns.values()):
        return rest
    if rest == PRIVATE_HEAD:
        raise BlindformerError(f"--weights {rest}: goes with no pattern; leave one of them out")
    return {**patterns, **({"rest": rest} if rest else {})}


def published(
    models: Sequence[str], given: list[str] | None, of_private: Sequence[object] = (), adapter: object = None
) -> Any:
    """As `weights_of`. Packaged models, whose weights anybody has, are public, unless an option is given that is for
    private ones. Errors: BlindformerError."""
    owners = weights_of(given)
    if owners is not None or not set(models) <= set(PUBLISHED):
        return owners
    if adapter:
        note("an adapter is the server's secret, so the model is compiled; --weights public keeps it here")
    if adapter or any(of_private):
        return None
    whose = f"{models[0]}'s weights are" if len(models) == 1 else "these models' weights are"
    note(f"{whose} public, so others only compute layers, on noise; --weights private takes sessions of two parties")
    return PUBLIC


OwnAdapter = Annotated[
    Path | None,
    Option(
        "--adapter",
        metavar="FOLDER",
        help="A LoRA adapter of peft: the server's; with --weights public your own (default: none).",
    ),
]


def refuse(given: Mapping[str, object], why: str) -> None:
    """Errors: BlindformerError if one of these options was given (None: it was not)."""
    if names := [name for name, value in given.items() if value is not None]:
        raise BlindformerError(f"{names[0]}: {why}")


def refuse_for_public(protocol: str, given: Mapping[str, object], head: bool = False) -> None:
    """Errors: BlindformerError for an option of compiled models, where the model runs as it is (None: it was not
    given). `head`: its private head is compiled."""
    if find(protocol).as_it_is:
        of_head = ("--calibrate", "--lengths") if head else ()
        given = {name: value for name, value in given.items() if name not in of_head}
        refuse(given, "is for compiled models, and one of public weights runs as it is; leave it out")


def refuse_for_compiled(protocol: str, given: Mapping[str, object]) -> None:
    """Errors: BlindformerError for an option of models that run as they are, where the model is compiled (None: it was
    not given)."""
    if not find(protocol).as_it_is:
        refuse(given, "is for models that run as they are; add --weights public, or leave it out")


def check_there(option: str, path: Path | None) -> None:
    """Errors: BlindformerError for a file or folder that is given and is not there."""
    if path is not None and not path.exists():
        raise BlindformerError(f"{option} {path}: cannot be read (No such file or directory); give one that is there")


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
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PlanError(f"{name}: cannot be read ({error.strerror}); give a preset or a plan's JSON file") from None
    return Plan.from_json(text, name)


def warn_untrained(plan: Any, own: Any = None) -> None:
    """Say, on stderr, when a plan's answers mean nothing for a model that was not trained with its functions.

    own: the plan in the model's folder, which `distill` and `federate` leave there: the one it was trained with.
    """
    if plan.needs_distillation() and not (own is not None and own.same_functions(plan)):
        note(f"plan {plan.name} needs a model trained with it (distill, federate); answers will be far off")


def read_system(path: Path, encoding: str | None = None) -> str:
    """A system prompt. Errors: DataError."""
    from ...models.data.reading import whole_text

    return whole_text("--system", path, encoding).strip()


def read_texts(path: Path | None, encoding: str | None = None) -> list[str] | None:
    """Texts to calibrate on: a table's, or one a line; None if there is no file. Errors: DataError."""
    from ...models.data.reading import bad_rows, text_rows

    if path is None:
        return None
    rows = list(text_rows(path, encoding=encoding, remedy="keep one of them, called text"))
    if bad := [(row.line, row.error) for row in rows if row.error is not None]:
        raise bad_rows(str(path), bad)
    return [str(row.text) for row in rows] or None


def read_lengths(lengths: str | None) -> list[int] | None:
    """Numbers of tokens in ascending order, each once; None if none are given. Errors: BlindformerError."""
    if lengths is None:
        return None
    try:
        numbers = sorted({int(number) for number in lengths.split(",")})
    except ValueError:
        numbers = []
    if numbers and numbers[0] > 0:
        return numbers
    raise BlindformerError(f"--lengths {lengths}: give numbers of tokens with commas, as 32,64,128")


@dataclass(frozen=True)
class ReceiptOptions:
    """Of a command whose parties can vouch for what they did. The prices are those of its --config."""

    receipt: Annotated[
        Path | None,
        Option(help="File for a signed receipt, as JSON (default: none)."),
    ] = None

    def read_prices(self, protocol: str = DEFAULT, config: Path | None = None) -> PricesSection | None:
        """The prices of the receipt that is asked for; None: none is. Errors: BlindformerError, before anything slow,
        where there can be none."""
        if self.receipt is None:
            return None
        if not find(protocol).receipts:
            raise BlindformerError(
                f"--receipt {self.receipt}: protocol {protocol} signs nothing; use protocol {DEFAULT}, or leave it out"
            )
        check_new("--receipt", self.receipt)
        return load_settings(config, deployed()).prices

    def issue(self, client: Any, prices: PricesSection | None) -> Receipt | BlindformerError | None:
        """The receipt that is asked for; its error, for the answers before it are good."""
        try:
            return None if prices is None else client.receipt(prices)
        except BlindformerError as error:
            return error

    def keep(self, receipt: Receipt | BlindformerError | None) -> None:
        """Write it, after the answers. Errors: BlindformerError, also what it has in a receipt's place."""
        if isinstance(receipt, BlindformerError):
            raise receipt
        if receipt is not None and self.receipt is not None:
            receipt.save(self.receipt)
            note(f"{self.receipt}: a receipt; blindformer receipt show and check read it")
