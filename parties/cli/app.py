"""The commands, and nothing that takes long to import: torch and transformers are for the command that needs them."""

from __future__ import annotations

import os
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
    models,
    precompute,
    query,
    receipt,
    run,
    search,
    services,
)
from .commands import CommandEntry, CommandLine

app = typer.Typer(
    name="blindformer",
    cls=CommandLine,
    help="Run Transformers privately: two parties and an offline dealer, semi-honest security.",
    no_args_is_help=True,
    suggest_commands=not any(needed.startswith("click") for needed in requires("typer") or ()),  # else click does it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def of_other_packages() -> dict[str, CommandEntry]:
    """The commands of packages that import this one: COMMANDS in a package's command.py."""
    package = __name__.partition(".")[0]
    others = sorted(path.parent.name for path in Path(__file__).parents[2].glob("*/command.py"))
    modules = [import_module(f"{package}.{name}.command") for name in others]
    return {name: command for module in modules for name, command in module.COMMANDS.items()}


COMMANDS: dict[str, CommandEntry] = {
    "demo": CommandEntry(run.demo, "Try", ""),
    "run": CommandEntry(
        run.run, "Try", 'minilm "I forgot my login." "How do I pay?"',
        "--file --pair --plan --protocol --length --truncate --weights --adapter --device --format",
    ),
    "chat": CommandEntry(
        chat.chat, "Try", 'smollm2 "What is the capital of France?"',
        "--max-new-tokens --temperature --system --tokens --protocol --weights --server --dealer --certs --format",
    ),
    "search": CommandEntry(search.search, "Try", 'minilm --file documents.csv "How can I pay?"'),
    "up": CommandEntry(gateway.up, "Try", "smollm2 minilm"),
    "estimate": CommandEntry(
        estimate.estimate, "Try", "minilm --length 128 --network wan",
        "--length --tokens --plan --network --protocol --weights --by --format",
    ),
    "compile": CommandEntry(
        compile.compile_model, "Build", "minilm --out compiled",
        "--out --plan --network --lengths --calibrate --weights --adapter --chat --tokens --format",
    ),
    "train": CommandEntry(distill.train, "Build", "minilm-fast --data mails.csv --out mails"),
    "distill": CommandEntry(
        distill.distill, "Build", "--teacher minilm --data mails.csv --out student",
        "--data --out --teacher --plan --layers --budget --embeddings --text-column --label-column --format",
    ),
    **of_other_packages(),
    "tune": CommandEntry(
        evaluate.tune, "Build", "mails --data mails.csv --out plan.json",
        "--data --budget --metric --plan --out --length --network --texts --format",
    ),
    "evaluate": CommandEntry(
        evaluate.evaluate, "Build", "mails --data mails.csv",
        "--data --text --protocol --plan --teacher --private --length --tokens --format",
    ),
    "list": CommandEntry(doctor.list_names, "Build", "plans"),
    "serve": CommandEntry(services.serve, "Serve", "compiled/server --certs certs"),
    "dealer": CommandEntry(services.dealer, "Serve", "--certs certs"),
    "helper": CommandEntry(services.helper, "Serve", "compiled/helper --certs certs"),
    "gateway": CommandEntry(gateway.gateway, "Serve", "--config blindformer.toml"),
    "query": CommandEntry(
        query.query, "Serve", 'compiled/client "I forgot my login." --certs certs',
        "--file --field --protocol --server --dealer --certs --config --truncate --out --format",
    ),
    "precompute": CommandEntry(
        precompute.precompute, "Serve", "compiled/client 100 --length 32 --store store --certs certs"
    ),
    "doctor": CommandEntry(
        doctor.doctor, "Manage", "compiled/client --certs certs",
        "",
    ),
}  # fmt: skip
for name, entry in COMMANDS.items():
    app.command(name, **entry.settings(name))(entry.run)
for name, group in {"models": models.app, "certs": certs.app, "keys": gateway.keys, "receipt": receipt.app}.items():
    app.add_typer(group, name=name, rich_help_panel="Manage")


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
