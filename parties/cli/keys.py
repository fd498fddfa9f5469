"""`blindformer keys`: who may ask the gateway with a key of their own."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Typer

from ..config import load_settings
from . import options
from .commands import CheckedCommand, example
from .output import note

Name = Annotated[str, Argument(help="The person's name in the log and in [gateway.people.NAME].")]

app = Typer(no_args_is_help=True, help="Give persons keys of their own for the gateway, and take them back.")


@app.command(cls=CheckedCommand, epilog=example("keys add alice --config blindformer.toml"))
def add(name: Name, config: options.Config = None) -> None:
    """Make a person's key for the gateway, and print it once; only its hash is kept."""
    from ..gateway.people import add_key

    file = load_settings(config).gateway.keys
    print(add_key(file, name))
    note(f"{file} has its hash; a running gateway takes the key in seconds")


@app.command(cls=CheckedCommand, epilog=example("keys remove alice --config blindformer.toml"))
def remove(name: Name, config: options.Config = None) -> None:
    """Revoke a person's key. A running gateway refuses it seconds later."""
    from ..gateway.people import remove_key

    remove_key(load_settings(config).gateway.keys, name)
    note(f"{name} has no key now; a running gateway refuses the old one in seconds")


@app.command("list", cls=CheckedCommand, epilog=example("keys list"))
def show(config: options.Config = None) -> None:
    """Print the names of all who have a key."""
    from ..gateway.people import read_keys

    file = load_settings(config).gateway.keys
    if names := sorted(read_keys(file)):
        print("\n".join(names))
    else:
        note(f"{file} has no keys; make one: blindformer keys add NAME")
