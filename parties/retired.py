"""Commands, options and settings of earlier versions, and what to do in their place."""

from __future__ import annotations

from itertools import pairwise

from ..errors import BlindformerError

_SERVICES = "a service is one process now: leave it out, and run several, such as with Kubernetes"
_SIZING = "plans for many users are gone: leave it out, and multiply the price of a query"
_PLACES = "no service sends a session elsewhere now: leave it out"
_AHEAD = "each query makes its own correlations now: leave it out"
_SIZES = ("users", "queries", "peak", "ahead", "within", "cores", "uplink", "utilisation", "core-hour", "gb")

COMMANDS = {
    "generate": "is part of chat now: blindformer chat MODEL PROMPT",
    "inspect": "is called models show now",
    "rm": "is called models rm now",
    "prune": "is called models prune now",
    "spool": "is part of precompute now: blindformer precompute --store FOLDER",
    "env": "is part of doctor now: blindformer doctor --env",
    "party": "is part of serve now: blindformer serve --party NAME",
    "sentinels": "is part of query now: blindformer query FOLDER --file TEXTS --write-known FILE",
    "head": "is called train now",
}
KEYS = {
    **dict.fromkeys(("crypten.ahead", "crypten.ahead_gb", "crypten.ahead_first"), _AHEAD),
    **dict.fromkeys(("server.replicas", "dealer.replicas"), _SERVICES),
    **{f"{section}.spool": "is called store now" for section in ("server", "helper", "client")},
    **{f"server.spool_{unit}": f"is called store_{unit} now" for unit in ("gb", "days")},
    "client.use_spool": "is called use_store now",
    **dict.fromkeys(("parties.server.replicas_at", "parties.dealer.replicas_at"), _PLACES),
}


def key(name: str) -> str:
    """What an option says that is a key of the settings file now."""
    return f"is a key of the settings file; write {name}, and add --config FILE"


def _settings(*names: str) -> dict[str, str]:
    return {f"--{name}": f"is a setting now: write --set {name.replace('-', '_')}=VALUE" for name in names}


_DRAWN = "nothing is drawn now: leave it out; --format json has all figures"
_PRICES = "is part of --config now: write [prices] in its file"
_UTF8 = "files are read in UTF-8 here: convert it first, with iconv -f cp1252 -t utf-8"
_READ = "reads tables by their usual names now, in UTF-8: leave it out"
_HELPER = key('address in [parties.helper] and topology = "helper" in [session]')
_FOLDER = "is part of --data now: write --data NAME=FOLDER"
# Words of commands, and what those options, or values of one, are now.
_ROWS: list[tuple[str, dict[str, str]]] = [
    ("serve dealer", dict.fromkeys(("--engine", "--replicas"), _SERVICES)),
    ("serve helper", {"--adapter": "is a table of the settings file; write NAME = FOLDER in [server.adapters] or "
                                   "[helper.adapters]"}),
    ("serve", {
        "--party dealer": "is a command now: blindformer dealer --config FILE",
        "--ahead": _AHEAD,
        "--folder": "is the argument FOLDER; with --party the key folder in [crypten.parties.NAME]",
        "--threads": key("threads in [crypten.parties.NAME]"),
        **dict.fromkeys(("--field", "--encoding"), _READ),
    }),
    ("distill", {
        "--processes": "distillation is of one process now: leave it out, and give --device cuda for a GPU",
        **_settings("texts", "pool", "hidden", "heads", "intermediate", "augment", "teacher-epochs", "hidden-epochs",
                    "logit-epochs"),
        "--bfloat16": "is a setting now: write --set bfloat16=true",
    }),
    ("federate", {
        **_settings("strategy", "layers", "hidden", "lora", "trained", "fraction", "epochs", "rate", "clip", "noise",
                    "delta", "alpha", "sample", "epsilon"),
        "--adaptive": "clips at the norm that --set clip=C says: leave it out",
        "--deploy": "is called --engine processes now",
        "--plot": _DRAWN,
        **dict.fromkeys(("--receipt", "--prices", "--config"), "no receipt is written of training: leave it out"),
    }),
    ("run evaluate", {"--protocol crypten-insecure": "is gone, as its dealer could read the data: use crypten"}),
    ("tune", {"--heads": "leave it out: distill --layers N, --set heads=N or --budget makes a smaller model"}),
    ("tune evaluate", {"--report": _DRAWN}),
    ("show", {"--html": "leave it out: --format json has all fields"}),
    ("demo gateway precompute", {"--threads": "leave it out: one thread computes"}),
    ("up", {"--threads": "is of compile: blindformer compile MODEL --threads N --out FOLDER, then up FOLDER"}),
    ("up gateway", {"--key-file": key("key in [gateway]")}),
    ("list", {"models": "is a command of its own: blindformer models"}),
    ("estimate", {f"--{name}": _SIZING for name in _SIZES}),
    ("run chat compile estimate", {
        f"--{owner}-weights": f"is part of --weights now: write --weights 'PATTERN={owner}'"
        for owner in ("public", "private")
    }),
    ("run query chat", {"--prices": _PRICES}),
    ("run query chat precompute", {"--client-memory": key("memory in [client]")}),
    ("query chat", {"--helper": _HELPER}),
    ("query", {"--sentinels": "is called --canaries now"}),
    ("query precompute", {"--spool": "is called --store now"}),
    ("doctor", {
        "--helper": _HELPER, "--audits": key("audits in [session]"), "--listen": key("listen in the party's section")
    }),
    ("chat compile estimate", {"--encoding": _UTF8}),
    ("train distill federate tune evaluate", {"--data-folder": _FOLDER}),
    ("run", {
        "--pad": key("pad in [client]"), "--timeout": key("timeout in [session]"),
        "--recipient": "is part of --owner now: write --owner answers=NAME",
        "--outputs": "is chosen when a model is compiled: blindformer compile --outputs NAMES, then query",
    }),
    ("estimate", dict.fromkeys(("--rtt", "--bandwidth"), "is part of --network now: write --network MS,MBIT")),
    ("chat", dict.fromkeys(("--reveal", "--embedding"), "is of compile --chat now; chat with the folder it writes")),
    ("demo", dict.fromkeys(("--length", "--plan"), "is of run: blindformer run minilm TEXT ...")),
    ("demo evaluate", {"--timeout": "leave it out: a party may be silent for two minutes"}),
]  # fmt: skip
OPTIONS: dict[str, dict[str, str]] = {}
for _commands, _options in _ROWS:
    for _command in _commands.split():
        OPTIONS.setdefault(_command, {}).update(_options)


def refuse_retired_command(name: str) -> None:
    """Errors: BlindformerError for a command that there was."""
    if instead := COMMANDS.get(name):
        raise BlindformerError(f"{name} {instead}")


def refuse_retired(command: str | None, words: list[str]) -> None:
    """Errors: BlindformerError for an option, or a value of one, that this command had."""
    options, values = [word.partition("=")[0] for word in words], [word.replace("=", " ", 1) for word in words]
    for given in (*options, *values, *map(" ".join, pairwise(words))):
        if instead := OPTIONS.get(command or "", {}).get(given):
            raise BlindformerError(f"{given}: {instead}")
