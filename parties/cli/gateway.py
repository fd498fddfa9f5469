"""`blindformer gateway`, `up` and `keys`: the OpenAI API on this machine, before models that never see what is
asked; and the keys of those who may ask."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer

from ...errors import BlindformerError
from ..config import Address, load_settings
from ..gateway import served_name
from ..launch import LOCAL
from ..launch.fork_server import shared as fork_server
from ..registry import DEFAULT, compiled_for, find, protocol_for
from . import options
from .commands import CheckedCommand, Without, example
from .output import aside, note
from .steps import Weights, cache_folder, compiling, loading, published, read_lengths, read_plan, refuse_for_public

ServedModelName = Annotated[
    list[str] | None,
    Option(help="Name of a model in the API (default: its own), once for each."),
]

STARTED = Without("--print-config")


def gateway(
    folder: Annotated[
        Path | None,
        Argument(help="The client's part of a compiled folder (default: the models in --config)."),
    ] = None,
    config: options.Config = None,
    server: options.ServerOrLocal = None,
    dealer: Annotated[options.Dealer, options.REMOTE] = None,
    certs: Annotated[options.ClientCerts, options.REMOTE] = None,
    served_model_name: ServedModelName = None,
    listen: options.Listen = None,
) -> None:
    """Offer served models as the OpenAI API on this machine, until Ctrl-C. Only shares leave it."""
    shared: dict[str, Any] = {"gateway.listen": listen}
    if folder is None and (server or dealer):
        raise BlindformerError("gateway: --server and --dealer are of one model; give its folder, too")
    if folder is None and served_model_name:
        what = "--served-model-name is of one model; give its folder, too"
        raise BlindformerError(f"gateway: {what}, or name it in a configuration: [gateway.models.NAME]")
    if folder is not None:
        model = {"folder": folder.expanduser().absolute(), "server": server, "dealer": dealer}
        shared |= {"client.folder": folder, "certificates.folder": certs}
        (called,) = _names([str(folder)], served_model_name)
        shared["gateway.models"] = {called: {name: value for name, value in model.items() if value is not None}}
    elif config is None:
        raise BlindformerError(
            "gateway: give the client's part of a compiled folder, or --config FILE that names models"
        )
    else:
        shared["certificates.folder"] = certs
    forks = fork_server() if server == LOCAL else None  # its libraries come beside our own
    _serve(config, shared)
    del forks


@options.grouped
def up(
    *,
    model: Annotated[
        list[str],
        Argument(help="Models: smollm2, minilm, a GGUF file, a model's folder or hub id, or a compiled folder."),
        options.NAMES_MODEL,
    ],
    config: options.Config = None,
    port: Annotated[
        int, Option(min=0, max=65535, help="The port of 127.0.0.1 to listen at; 0 takes a free one."), STARTED
    ] = 8080,
    plan: Annotated[options.OwnPlan, STARTED] = None,
    lengths: options.Lengths = None,
    tokens: Annotated[int | None, Option(min=32, help=options.TOKENS)] = None,
    served_model_name: ServedModelName = None,
    adapter: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FOLDER",
            help="A LoRA adapter to offer as model NAME; of several models, MODEL:NAME=FOLDER. May be repeated.",
        ),
    ] = None,
    weights: Weights = None,
    print_config: Annotated[
        bool, Option("--print-config", help="Print what a deployment on several machines needs, and end.")
    ] = False,
) -> None:
    """Compile models, then run a dealer, their servers and the gateway on this machine, until Ctrl-C.

    Language models are offered for chat, encoders for embeddings or labels, speech models for transcription.
    """
    names, numbers = _names(model, served_model_name), read_lengths(lengths)
    put_on = _by_model(adapter or [], names)
    owners = published(model, weights, (plan, numbers, tokens), adapter)
    public = bool(find(protocol := protocol_for(DEFAULT, owners)).as_it_is)
    refuse_for_public(protocol, {"--lengths": lengths, "--tokens": tokens})
    if print_config:
        options_of = {name: "".join(f" --weights {shlex.quote(item)}" for item in weights or []) for name in names}
        by_name = dict(zip(names, model, strict=True))
        print(_deployment(by_name, numbers, tokens, options_of, put_on, public), end="")
        return
    folders: dict[str, dict[str, Any]] = {}
    forks = fork_server()
    with loading(1, notes=1) as phases:
        from ...models.cached import is_compiled
        from ...models.compile import part_of
        from ...models.delegated.building import found_or_delegated
        from ...models.generation.folder import found_or_compiled_as_it_is, talks
        from ...models.loading.adapters import parse_adapters
        from ..service.start import bind

        if numbers and all(map(talks, model)):
            raise BlindformerError(f"--lengths {lengths}: a conversation has none, and {names[0]} talks; leave it out")
        if tokens and not any(is_compiled(one) or talks(one) for one in model):
            raise BlindformerError(f"--tokens {tokens}: is of conversations, and {names[0]} has none; leave it out")
        bind(Address("127.0.0.1", port), 1).close()  # a port that is taken is said before anything slow happens
        cache = cache_folder(config)
        chosen = None if plan is None else read_plan(plan)
        adapters = {name: parse_adapters(items) for name, items in put_on.items()}
        phases.end("load")
        with compiling(phases) as progress:
            for number, (name, given) in enumerate(zip(names, model, strict=True)):
                share = part_of(progress, number / len(names), (number + 1) / len(names), f"{name}: ")
                making = {"plan": chosen, "progress": share, "first": partial(_note_first, name, public)}
                if public:
                    folder = given if compiled_for(given) else found_or_delegated(given, cache, **making)
                else:
                    making |= {"lengths": numbers, "slots": tokens, "weights": owners, "adapters": adapters[name]}
                    folder = found_or_compiled_as_it_is(given, cache, **making)
                folder = Path(folder).expanduser()
                folders[name] = {"folder": folder.absolute(), "server": LOCAL}
                for called, own in adapters[name].items() if public else ():
                    folders[called] = {**folders[name], "adapter": str(own.absolute())}
    note("all parties run on this machine: this is for trying; --print-config says what a deployment needs")
    mine = {"listen": f"127.0.0.1:{port}", "models": folders}
    _serve(config, {f"gateway.{name}": value for name, value in mine.items()}, linked=True)
    del forks


def _note_first(name: str, public: bool, place: Path) -> None:
    """What a first start will take: as measured of two models, since of others it is not known before."""
    minilm, smollm2 = "2 minutes of a free core and 70 MB of disk", "4 minutes of a free core and 350 MB of disk"
    if public:
        minilm, smollm2 = "1 second of a free core and 110 MB of disk", "20 seconds of a free core and 310 MB of disk"
    others = f"how long depends on its size; minilm takes {minilm}, smollm2 {smollm2}"
    note(f"{name} is prepared first, once: {({'minilm': minilm, 'smollm2': smollm2}).get(name, others)}")


def _serve(config: Path | None, flags: Mapping[str, Any], linked: bool = False) -> None:
    with loading(1):
        from ..gateway.serving import serve

        settings = load_settings(config, **flags)
    notes = _Notes(linked)
    serve(settings, notes.listening, notes.opened)
    aside().print("stopped", markup=False)


class _Notes:
    """A gateway's lines on stderr: results go to stdout, and it has none."""

    def __init__(self, linked: bool) -> None:
        self._linked = linked  # whether a terminal is shown the page's link, which holds the key
        self._at: Any = None
        self._shown: set[str] = set()  # tasks

    def listening(self, at: Any) -> None:
        """`at`: gateway.serving.Listening."""
        self._at = at
        aside().print(f"[bold]Blindformer gateway[/]   {at.url}/v1   a page for people: {at.url}/")
        aside().print(f"key      {at.key_place}", markup=False)
        if self._linked and sys.stderr.isatty() and not at.exposed:  # rich takes a log for one where FORCE_COLOR is set
            aside().print(f"open     {at.page}", markup=False, soft_wrap=True)
        if at.exposed:
            note("other machines can reach this address, and the key travels in the clear; put a TLS proxy before it")

    def opened(self, model: Any) -> None:
        """A model's parties were met, or not; the first of each task with a line that asks it."""
        if model.state != "ready":
            aside().print(f"model    {model.name}: {model.state}", markup=False)
            return
        for role, place in model.client.addresses().items():
            aside().print(f"{role:<8} {place}   of {model.name}", markup=False)
        aside().print(f"model    {model.name}   for {model.task}   ready", markup=False)
        if model.task not in self._shown:
            self._shown.add(model.task)
            aside().print(f"ask it   {_curl(self._at, model)}", markup=False)


def _curl(at: Any, model: Any) -> str:
    """A line for a shell. The key is in no argument, which others on this machine could read."""
    path, body = "/v1/embeddings", {"model": model.name, "input": "I forgot my login."}
    if model.talks:
        path, body = "/v1/chat/completions", {"model": model.name, "messages": [{"role": "user", "content": "Hi"}]}
    elif not model.embeds:
        path = "/classify"
    sent = ["--json", json.dumps(body)]
    if model.hears:
        path, sent = "/v1/audio/transcriptions", ["-F", f"model={model.name}", "-F", "file=@your.wav"]
    head = "Authorization: Bearer "
    key = f"sed 's/^/{head}/' {shlex.quote(at.key_place)}"
    if not Path(at.key_place).is_absolute():
        key = f"printf '{head}%s' \"${at.key_place}\""
    return f"{key} | curl -H @- {at.url}{path} {shlex.join(sent)}"


def _names(models: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The name of each model in the API. Errors: BlindformerError."""
    names, option = list(given or map(served_name, models)), "--served-model-name"
    if len(names) != len(models):
        what = f"{len(names)} names for {len(models)} model{'s' * (len(models) > 1)}"
        raise BlindformerError(f"{option}: {what}; give it once for each, in their order")
    if len(set(names)) < len(names):
        raise BlindformerError(f"two models are called {max(names, key=names.count)}; name each with {option}")
    if given and not all(name.strip() and name.isprintable() for name in names):
        raise BlindformerError(f"{option}: a name is empty, or no line of text; give one such as my-model")
    return names


def _by_model(given: Sequence[str], models: Sequence[str]) -> dict[str, list[str]]:
    """NAME=FOLDER of the adapters of each model, from [MODEL:]NAME=FOLDER. Errors: BlindformerError."""
    adapters: dict[str, list[str]] = {name: [] for name in models}
    names = list(models)
    for item in given:
        whose, _, own = item.partition("=")[0].rpartition(":")
        if whose not in adapters and len(models) > 1:
            what = f"which of the {len(models)} models is it put on"
            raise BlindformerError(f"--adapter {item}: {what}? Say it, as {models[0]}:{own}=FOLDER")
        names.append(own if whose in adapters else item.partition("=")[0])
        if names.count(names[-1]) > 1:
            raise BlindformerError(f"--adapter {item}: {names[-1]} is given twice; call one of them differently")
        if whose in adapters:
            adapters[whose].append(item.removeprefix(f"{whose}:"))
        else:
            adapters[models[0]].append(item)
    return adapters


def _deployment(
    models: Mapping[str, str],
    lengths: Sequence[int] | None,
    tokens: int | None,
    options_of: Mapping[str, str],
    adapters: Mapping[str, Sequence[str]],
    public: bool,
) -> str:
    """blindformer.toml and the commands for these models, by name, on machines of their own. `options_of`: what
    compile is told, by model. Of `public` ones a dealer has each one's weights, and adapters are the client's own."""
    from ...models.cached import is_compiled
    from ...models.generation.folder import talks

    settings, one_dealer = "--config blindformer.toml --listen 0.0.0.0", "dealer.example.org:7444"
    make, deal, serve, sections = [], [], [], []
    for number, (name, model) in enumerate(models.items()):
        if is_compiled(model) or compiled_for(model):
            raise BlindformerError(f"{model}: is compiled already; give the model's own folder to --print-config")
        port, folder = 7443 + 10 * number, "compiled/" + re.sub(r"^\.|[^\w.-]", "-", name.rpartition("/")[2])
        called, dealer, beside = options_of[name], "", {name: ""}
        if public:
            called = called or " --weights public"
            dealer = f"dealer.example.org:{port + 1}"
            deal.append(f"blindformer dealer {folder}/dealer {settings}:{port + 1}")
            beside |= {
                own: f"adapter = {json.dumps(at)}\n" for own, _, at in (a.partition("=") for a in adapters[name])
            }
        else:
            padded = f" --lengths {','.join(map(str, lengths))}" if lengths else ""
            chosen = " --chat" + (f" --tokens {tokens}" if tokens else "") if talks(model) else padded
            called = chosen + called + "".join(f" --adapter {shlex.quote(item)}" for item in adapters[name])
        make.append(f"blindformer compile {shlex.quote(model)}{called} --out {folder}")
        serve.append(f"blindformer serve {folder}/server {settings}:{port}" + (dealer and f" --dealer {dealer}"))
        place = f'folder = "{folder}/client"\nserver = "server.example.org:{port}"\n'
        place += dealer and f'dealer = "{dealer}"\n'
        sections += [f"[gateway.models.{json.dumps(own)}]\n{place}{more}" for own, more in beside.items()]
    hosts = "--host server.example.org --host dealer.example.org"
    commands = {
        "the model's owner": make,
        "who gives certificates": [f"blindformer certs make certs {hosts}"],
        "the dealer": deal or [f"blindformer dealer {settings}:7444"],
        "the server": serve,
        "the client": ["blindformer gateway --config blindformer.toml"],
    }
    lines = [f"#   {who}\n" + "".join(f"#     {line}\n" for line in some) for who, some in commands.items()]
    return (
        "# blindformer.toml, the same on every machine. Each gets ca.pem, its own certificate and key in certs/, and\n"
        "# its own part of compiled/: the server's stays with the model's owner. Commands, machine by machine:\n#\n"
        + "".join(lines)
        + f'\n[parties.server]\naddress = "server.example.org:7443"\n\n[parties.dealer]\naddress = "{one_dealer}"\n\n'
        + '[certificates]\nfolder = "certs"\n\n'
        + "\n".join(sections)
    )


Name = Annotated[str, Argument(help="The person's name in the log and in [gateway.people.NAME].")]

keys = Typer(no_args_is_help=True, help="Give persons keys of their own for the gateway, and take them back.")


@keys.command(cls=CheckedCommand, epilog=example("keys add alice --config blindformer.toml"))
def add(name: Name, config: options.Config = None) -> None:
    """Make a person's key for the gateway, and print it once; only its hash is kept."""
    from ..gateway.access import add_key

    file = load_settings(config).gateway.keys
    print(add_key(file, name))
    note(f"{file} has its hash; a running gateway takes the key in seconds")


@keys.command(cls=CheckedCommand, epilog=example("keys remove alice --config blindformer.toml"))
def remove(name: Name, config: options.Config = None) -> None:
    """Revoke a person's key. A running gateway refuses it seconds later."""
    from ..gateway.access import remove_key

    remove_key(load_settings(config).gateway.keys, name)
    note(f"{name} has no key now; a running gateway refuses the old one in seconds")


@keys.command("list", cls=CheckedCommand, epilog=example("keys list"))
def show(config: options.Config = None) -> None:
    """Print the names of all who have a key."""
    from ..gateway.access import read_keys

    file = load_settings(config).gateway.keys
    if names := sorted(read_keys(file)):
        print("\n".join(names))
    else:
        note(f"{file} has no keys; make one: blindformer keys add NAME")
