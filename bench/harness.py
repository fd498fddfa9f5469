"""What all benchmarks share: options, a status line, what stands beside every figure, and a report as JSON or a table.

A report is a dict of what bench/README.md explains, key by key. `carry_out` adds versions, commit, machine and command.
"""

import argparse
import json
import math
import multiprocessing
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from blindformer.cores import cores, tune_process
from blindformer.levels import instructions, level
from blindformer.models.program.pricing import Network
from blindformer.models.weight_owners import PRIVATE, PUBLIC
from blindformer.protocols.errors import BlindformerError
from blindformer.versions import versions
from rich.console import Console
from rich.table import Table

from .workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]
PLANS = ("faithful", "fast")
Report = dict[str, Any]
Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


class BenchError(BlindformerError):
    """A measurement that could not be made, or a promise that it found broken."""


# Options.


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Of `python -m bench.MODULE`."""
    options = argparse.ArgumentParser(prog=f"python -m bench.{module}", description=description)
    options.add_argument("--format", choices=["table", "json"], default="table")
    return options


def model_parser(module: str, description: str, models: Iterable[str] | None = WORKLOADS) -> argparse.ArgumentParser:
    """The options that the benchmarks of one model share. `models`: None for all that can be loaded, too."""
    options, names = parser(module, description), f"{', '.join(WORKLOADS)}, or any model that writes (%(default)s)"
    known: dict[str, Any] = {"help": names} if models is None else {"choices": list(models)}
    options.add_argument("--model", default="minilm", **known)
    options.add_argument("--length", type=int, default=128, help="tokens, all real (default %(default)s)")
    options.add_argument("--plan", choices=PLANS, default="faithful")
    options.add_argument("--timeout", type=float, default=600, help="seconds of silence allowed (default %(default)s)")
    return options


def add_weights(options: argparse.ArgumentParser, *more: str) -> None:
    choices = (PRIVATE, PUBLIC, *more)
    options.add_argument("--weights", choices=choices, default=PRIVATE, help="whose they are (%(default)s)")


def add_network(options: argparse.ArgumentParser) -> None:
    options.add_argument("--rtt", type=float, help="milliseconds there and back, of a network to imitate")
    options.add_argument("--bandwidth", type=float, help="Mbit/s each way, with --rtt")


def network_of(chosen: argparse.Namespace) -> Network | None:
    """The network to imitate between the parties; None: loopback."""
    if (chosen.rtt is None) != (chosen.bandwidth is None):
        raise BenchError("--rtt and --bandwidth: give both, or none")
    return None if chosen.rtt is None else Network("as given", chosen.rtt / 1e3, chosen.bandwidth * 1e6)


# Running.


def carry_out(
    options: argparse.ArgumentParser,
    arguments: list[str] | None,
    measure: Callable[[argparse.Namespace, Say], Report],
    show: Callable[[Report], Sequence[Table | str]],
    *,
    packages: Sequence[str] = (),
    broken: Callable[[Report], str] = lambda report: "",
) -> int:
    """Measure, and print one JSON line, or what `show` makes of the report with its provenance below.

    packages   whose versions stand beside those of ours and torch
    broken     which promise the measurement found broken; "": none

    An error and what is broken are one line on stderr, and exit code 1.
    """
    chosen, command = options.parse_args(arguments), repeated(options.prog, arguments)

    def work(say: Say) -> None:
        about = {**provenance(*packages), "command": command}
        report = {**measure(chosen, say), **about}
        if chosen.format == "json":
            print(json_line(report))
        else:
            console = Console(width=None if sys.stdout.isatty() else 150)
            for part in show(report):
                console.print(part, highlight=False, soft_wrap=isinstance(part, str), markup=False)
            console.print(provenance_line(report), style="dim", soft_wrap=True)
        if what := broken(report):
            raise BenchError(what)

    return run_command(options.prog, work)


def run_command(program: str, work: Callable[[Say], None]) -> int:
    """Run a command's work with a status line on stderr; an error is one line there, and exit code 1."""
    tune_process()  # as the command line does
    try:
        with Console(stderr=True).status("") as status:
            work(status.update)
    except BlindformerError as error:
        sys.stderr.write(f"{program.rpartition(' ')[2]}: {error}\n")
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


# Figures.


def spread(name: str, values: Sequence[float]) -> Report:
    """Repeated runs: their median, the least, the largest, and all."""
    figures = {f"{name}_min": min(values), f"{name}_max": max(values), f"{name}_all": list(values)}
    return {name: statistics.median(values), **figures}


def seconds(value: float) -> str:
    return f"{value:.3f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"


def grid(title: str, rows: Mapping[str, str]) -> Table:
    """A name and a value a line."""
    table = Table(title=title, show_header=False)
    for row in rows.items():
        table.add_row(*row)
    return table


def columns(title: str, *names: str, left: Sequence[str] = ()) -> Table:
    """A table without rows, of numbers but for its first column and those that `left` names."""
    table = Table(title=title)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if not number or name in left else "right")
    return table


# Provenance.


def provenance(*packages: str) -> Report:
    """What is said before anything is measured: with what, and on what."""
    return {"versions": versions(*packages), "commit": commit(), "machine": machine()}


def provenance_line(report: Report) -> str:
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = report["machine"]
    cpu = f"{machine['cpu']}, level {machine['level']}, {machine['cores']} cores"
    return f"{used}; commit {report['commit'] or 'unknown'}; {cpu}, {machine['memory_gb']} GB, load {machine['load']}"


def repeated(program: str, arguments: list[str] | None) -> str:
    """The command that repeats a measurement, without the paths of this machine."""
    words = sys.argv[1:] if arguments is None else arguments
    return shlex.join([*program.split(), *(Path(word).name if word.startswith("/") else word for word in words)])


def commit() -> str | None:
    """The checkout's commit, `+dirty` if tracked files differ from it; None outside a checkout."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """`load`: runnable processes over the last minute, before we start ours: on a quiet machine well under 1. `level`:
    of our kernels; `torch_level`: that of torch, so of everything in float32."""
    return {
        "cpu": _cpu(),
        "level": level(),
        "torch_level": torch.backends.cpu.get_cpu_capability(),
        **instructions(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(psutil.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def json_line(value: Any) -> str:
    """One line; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
