"""The commands, and nothing that takes long to import: torch and transformers are for the command that needs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated

import typer

from ...versions import PROTOCOL, my_version, versions
from . import (
    certs,
    chat,
    compile,
    distill,
    doctor,
    estimate,
    evaluate,
    gateway,
    lists,
    models,
    precompute,
    query,
    receipt,
    run,
    sentinels,
    services,
    tune,
)
from .options import CheckedCommand, CommandLine

app = typer.Typer(
    name="blindformer",
    cls=CommandLine,
    help="Run Transformers privately: two parties and an offline dealer, semi-honest security.",
    no_args_is_help=True,
    suggest_commands=not any(needed.startswith("click") for needed in requires("typer") or ()),  # else click does it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def of_other_packages() -> dict[str, Callable[..., None]]:
    """The commands of packages that import this one: COMMANDS in a package's command.py."""
    package = __name__.partition(".")[0]
    others = sorted(path.parent.name for path in Path(__file__).parents[2].glob("*/command.py"))
    modules = [import_module(f"{package}.{name}.command") for name in others]
    return {name: command for module in modules for name, command in module.COMMANDS.items()}


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": run.demo,
    "run": run.run,
    "chat": chat.chat,
    "compile": compile.compile_model,
    "serve": services.serve,
    "dealer": services.dealer,
    "helper": services.helper,
    "query": query.query,
    "gateway": gateway.gateway,
    "up": gateway.up,
    "precompute": precompute.precompute,
    "distill": distill.distill,
    "train": distill.train,
    **of_other_packages(),
    "evaluate": evaluate.evaluate,
    "tune": tune.tune,
    "estimate": estimate.estimate,
    "list": lists.list_names,
    "doctor": doctor.doctor,
}
for name, command in COMMANDS.items():
    app.command(name, cls=CheckedCommand)(command)
app.add_typer(models.app, name="models")
app.add_typer(certs.app, name="certs")
app.add_typer(receipt.app, name="receipt")
app.add_typer(sentinels.app, name="sentinels")


def _say_version(asked: bool) -> None:
    if asked:
        others = (f"{name} {number}" for name, number in versions().items() if name != "blindformer")
        print(f"blindformer {my_version()}, protocol {PROTOCOL} ({', '.join(others)})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the versions that matter and exit."
        ),
    ] = False,
) -> None:
    """Run Transformers privately: two parties and an offline dealer, semi-honest security."""
    # Quiet the libraries that write to the terminal uninvited.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
