"""The same measurements at each level of processors that this machine has: one process a level, one after the other.

    python -m bench.levels --format json
    python -m bench.levels --models minilm --plans fast --levels x86-64-v3 torch

README.md says what each figure means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from blindformer.levels import LEVELS, TORCH, VARIABLE, LevelError, kernels_of
from blindformer.protocols.errors import BlindformerError
from rich.console import Console
from rich.table import Table

from .commands import PLANS, Say, run_command, seconds
from .provenance import json_line, provenance_line

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE_MODELS = ("smollm2", "gpt2")  # measured by the token (bench.generation)


def here() -> list[str]:
    """The levels of this machine, the highest first; torch alone is the last."""
    levels = []
    for level in LEVELS:
        try:
            kernels_of(level)
        except LevelError:
            continue
        levels.append(level)
    return [*levels, TORCH]


def measure(model: str, plan: str, level: str, length: int) -> dict[str, Any]:
    """A line of bench.latency, or of bench.generation, at a level. Errors: BlindformerError."""
    if model in LANGUAGE_MODELS:
        words = ["bench.generation", "--cache", str(length), "--tokens", "16"]
    else:
        words = ["bench.latency", "--length", str(length)]
    command = [sys.executable, "-m", *words, "--model", model, "--plan", plan, "--format", "json"]
    environment = {**os.environ, VARIABLE: level}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BlindformerError(f"{model}, plan {plan}, level {level}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def row(figures: dict[str, Any]) -> list[str]:
    """What a table shows of a line: seconds in the clear, online and offline, a text or a token."""
    each = "_per_token" if "prefill_s" in figures else ""
    clear, online, offline = (figures[f"{name}_s{each}"] for name in ("plaintext", "online", "offline"))
    what = f"{figures['model']}, a token" if each else figures["model"]
    times = f"{seconds(online)} ({online / clear:.1f}x)"
    return [what, figures["plan"], figures["machine"]["level"], seconds(clear), times, seconds(offline)]


def table(reports: list[dict[str, Any]]) -> Table:
    grid = Table(*("model", "plan", "level", "in the clear", "online", "offline"))
    for line in reports:
        grid.add_row(*row(line))
    last = reports[-1]
    grid.caption = provenance_line(last["commit"], last["versions"], last["machine"])
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.levels", description="Measure at each level of processors.")
    options.add_argument("--models", nargs="+", default=["minilm", "bert-base"], help="default: minilm bert-base")
    options.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS), help="of encoders; default: both")
    options.add_argument("--levels", nargs="+", choices=[*LEVELS, TORCH], help="default: all of this machine")
    options.add_argument("--length", type=int, default=128, help="tokens of a text, or before a token (default 128)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        rows = []
        for model in chosen.models:
            for plan in ["faithful"] if model in LANGUAGE_MODELS else chosen.plans:
                for level in chosen.levels or here():
                    say(f"{model}, plan {plan}, level {level}")
                    rows.append(measure(model, plan, level, chosen.length))
                    if chosen.format == "json":
                        print(json_line(rows[-1]), flush=True)
        if chosen.format == "table":
            Console().print(table(rows))

    return run_command("bench.levels", work)


if __name__ == "__main__":
    raise SystemExit(main())
