"""The commands, and nothing that takes long to import: torch and transformers are for the command that needs them."""

from __future__ import annotations

from typing import Annotated

import typer

from ...versions import my_version
from . import (
    certs,
    compile,
    dealer,
    demo,
    distill,
    doctor,
    env,
    estimate,
    evaluate,
    federate,
    helper,
    inspect,
    listing,
    party,
    precompute,
    query,
    run,
    search,
    serve,
    spool,
)

app = typer.Typer(
    name="blindformer",
    help="Transformers on data nobody but its owner sees: two parties and an offline dealer, semi-honest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("compile")(compile.compile_model)
app.command("inspect")(inspect.inspect)
app.command("serve")(serve.server)
app.command("dealer")(dealer.dealer)
app.command("helper")(helper.helper)
app.command("party")(party.party)
app.command("query")(query.query)
app.command("precompute")(precompute.precompute)
app.command("spool")(spool.spool)
app.command("distill")(distill.distill)
app.command("federate")(federate.federate)
app.command("evaluate")(evaluate.evaluate)
app.command("search")(search.search)
app.command("estimate")(estimate.estimate)
app.command("list")(listing.list_names)
app.command("doctor")(doctor.doctor)
app.command("env")(env.env)
app.add_typer(certs.app, name="certs")


def _say_version(asked: bool) -> None:
    if asked:
        print(f"blindformer {my_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    """Transformers on data nobody but its owner sees: two parties and an offline dealer, semi-honest."""
