"""What the benchmarks' commands share: options, a status line, one-line errors, and a result as a table or as JSON."""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import multiprocessing
import shlex
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from blindformer.parties.tuning import tune_process
from blindformer.protocols.errors import BlindformerError
from rich.console import Console
from rich.table import Table

from .provenance import json_line, provenance_line
from .workloads import WORKLOADS

PLANS = ("faithful", "fast")
Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


def seconds(value: float) -> str:
    return f"{value:.3f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"


def federation_parser(prog: str, description: str, *, alpha: float, rounds: int) -> argparse.ArgumentParser:
    """The options that benchmarks of federated training share, with these defaults."""
    options = argparse.ArgumentParser(prog=prog, description=description)
    options.add_argument("--data", default="digits", help="a data set's name (default digits)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each splits anew (default 0 1 2)")
    options.add_argument("--plan", choices=[*PLANS, "he"], default="fast")
    options.add_argument("--clients", type=int, default=10)
    options.add_argument("--alpha", type=float, default=alpha, help="of the Dirichlet shares (default %(default)s)")
    options.add_argument("--rounds", type=int, default=rounds, help="of training (default %(default)s)")
    options.add_argument("--model", default="minilm", help="for texts: what training begins with (default minilm)")
    options.add_argument("--lora", type=int, default=0, help="for texts: rank of the adapters (default none)")
    options.add_argument("--work", default="runs", help="where trained models are kept (default runs)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    return options


def run_command(name: str, work: Callable[[Say], None]) -> int:
    """Run a command's work with a status line on stderr; an error is one line there, and exit code 1."""
    console = Console(stderr=True)
    tune_process()  # as the command line does
    try:
        with console.status("") as status:
            work(status.update)
    except BlindformerError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    return 0


def apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` returns in a new process: the memory that it takes is not this one's, nor this one's its own.

    Arguments and result are pickled. Errors: BlindformerError, one line.
    """
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=start, initializer=tune_process) as pool:
        return pool.submit(_in_one_line, call, *args, **kwargs).result()


def _in_one_line(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return call(*args, **kwargs)
    except BlindformerError as error:
        raise BlindformerError(str(error)) from None  # others may take more than a text, and do not pickle


def repeated(module: str, arguments: list[str] | None) -> str:
    """The command that repeats a measurement."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def publish(report: Any, form: str, table: Callable[[Any], Table], *notes: str) -> None:
    """A measurement as one JSON line, or as a table with notes and its provenance below."""
    if form == "json":
        print(json_line(asdict(report)))
        return
    console = Console()
    console.print(table(report))
    for note in notes:
        console.print(note, highlight=False)
    console.print(provenance_line(report.commit, report.versions, report.machine), style="dim", soft_wrap=True)


def parser(prog: str, description: str, models: Iterable[str] = WORKLOADS) -> argparse.ArgumentParser:
    """The options that the benchmarks of one model share."""
    options = argparse.ArgumentParser(prog=prog, description=description)
    options.add_argument("--model", choices=list(models), default="minilm")
    options.add_argument("--length", type=int, default=128, help="tokens, all real (default %(default)s)")
    options.add_argument("--plan", choices=PLANS, default="faithful")
    options.add_argument("--timeout", type=float, default=600, help="seconds of silence allowed (default %(default)s)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    return options
