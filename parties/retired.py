"""Commands, options and settings of earlier versions, and what to do in their place."""

from __future__ import annotations

from ..errors import BlindformerError

_SERVICES = "a service is one process now: leave it out, and run several, such as with Kubernetes"
_SIZING = "plans for many users are gone: leave it out, and multiply the price of a query"
_PLACES = "no service sends a session elsewhere now: leave it out"
_LAUNCHER = "a launcher starts them: torchrun --nproc-per-node N -m blindformer distill ..."
_SIZES = ("users", "queries", "peak", "ahead", "within", "cores", "uplink", "utilisation", "core-hour", "gb")

COMMANDS = {
    "generate": "is part of chat now: blindformer chat MODEL PROMPT",
    "inspect": "is called models show now",
    "rm": "is called models rm now",
    "prune": "is called models prune now",
    "spool": "is part of precompute now: blindformer precompute --spool FOLDER",
    "env": "is part of doctor now: blindformer doctor --env",
    "party": "is part of serve now: blindformer serve --party NAME",
    "sentinels": "is part of query now: blindformer query FOLDER --file TEXTS --write-known FILE",
    "head": "is called train now",
}
KEYS = {
    **dict.fromkeys(("server.replicas", "dealer.replicas"), _SERVICES),
    **dict.fromkeys(("parties.server.replicas_at", "parties.dealer.replicas_at"), _PLACES),
}
_ADAPTERS = "is a table of the settings file; write NAME = FOLDER in [server.adapters] or [helper.adapters]"
_READ = "reads tables by their usual names now, in UTF-8: leave it out"
_OF_PARTY = {
    "--ahead": "is a key of the settings file; write ahead_first in [crypten], and add --config FILE",
    "--folder": "is the argument FOLDER; with --party the key folder in [crypten.parties.NAME]",
    "--threads": "is a key of the settings file; write threads in [crypten.parties.NAME]",
    **dict.fromkeys(("--field", "--encoding"), _READ),
}
OPTIONS: dict[str, dict[str, str]] = {
    "serve": {**dict.fromkeys(("--engine", "--replicas"), _SERVICES), "--adapter": _ADAPTERS, **_OF_PARTY},
    "dealer": dict.fromkeys(("--engine", "--replicas"), _SERVICES),
    "helper": {"--adapter": _ADAPTERS},
    "distill": {"--processes": _LAUNCHER},
    "up": {"--key-file": "is a key of the settings file; write key in [gateway], and add --config FILE"},
    "list": {"models": "is a command of its own: blindformer models"},
    "estimate": {f"--{name}": _SIZING for name in _SIZES},
}


def refuse_retired_command(name: str) -> None:
    """Errors: BlindformerError for a command that there was."""
    if instead := COMMANDS.get(name):
        raise BlindformerError(f"{name} {instead}")


def refuse_retired(command: str | None, words: list[str]) -> None:
    """Errors: BlindformerError for an option that this command had."""
    for option in (word.partition("=")[0] for word in words):
        if instead := OPTIONS.get(command or "", {}).get(option):
            raise BlindformerError(f"{option}: {instead}")
