"""`blindformer gateway` and `up`: the OpenAI API on this machine, in front of models that never see what is asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ...errors import BlindformerError
from ..launch import LOCAL
from ..launch.fork_server import shared as fork_server
from . import options
from .output import aside, note
from .steps import compiling, loading, read_plan

KeyFile = Annotated[
    Path | None, Option(help="The file of the key that callers show (default: ~/.config/blindformer/gateway.key).")
]
Listen = Annotated[str | None, Option(help="HOST:PORT to listen at (default: 127.0.0.1:8080).")]


def gateway(
    folder: Annotated[
        Path | None, Argument(help="The client's part of a compiled folder; more models by a configuration.")
    ] = None,
    config: options.Config = None,
    server: Annotated[
        str | None, Option(help="host:port; or local: server and dealer on this machine, while the gateway runs.")
    ] = None,
    dealer: options.ClientDealer = None,
    certs: options.ClientCerts = None,
    listen: Listen = None,
    key_file: KeyFile = None,
    queue: Annotated[int | None, Option(min=0, help="Requests that may wait for a model (default: 64).")] = None,
    threads: options.OwnThreads = 1,
) -> None:
    """Offer served models as the OpenAI API, on this machine, until Ctrl-C or SIGTERM. Only shares leave it."""
    shared = {"gateway.listen": listen, "gateway.key": key_file, "gateway.queue": queue}
    if folder is None and (server or dealer):
        raise BlindformerError("gateway: --server and --dealer are of one model; give its folder, too")
    if folder is not None:
        model = {"folder": folder.expanduser().absolute(), "server": server, "dealer": dealer}
        shared |= {"client.folder": folder, "certificates.folder": certs}
        shared["gateway.models"] = {"": {name: value for name, value in model.items() if value is not None}}
    elif config is None:
        raise BlindformerError(
            "gateway: give the client's part of a compiled folder, or --config FILE that names models"
        )
    else:
        shared["certificates.folder"] = certs
    forks = fork_server() if server == LOCAL else None  # its libraries come beside our own
    _serve(config, threads, shared)
    del forks


def up(
    model: Annotated[
        list[str],
        Argument(help="smollm2, minilm, a GGUF file, a model's folder or hub id, or a folder that compile wrote."),
    ],
    port: Annotated[int, Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")] = 8080,
    plan: options.OwnPlan = None,
    key_file: KeyFile = None,
    print_config: Annotated[
        bool, Option("--print-config", help="Print what a deployment on several machines needs, and end.")
    ] = False,
    threads: options.OwnThreads = 1,
) -> None:
    """Compile models, start a dealer and a server for each, and the gateway, all on this machine, until Ctrl-C.

    A language model is offered for chat, an encoder for embeddings or classification.
    """
    names = [_called(given) for given in model]
    if len(set(names)) < len(names):
        raise BlindformerError(f"up: two models are called {max(names, key=names.count)}; rename a folder")
    if print_config:
        print(_deployment(dict(zip(names, model, strict=True))), end="")
        return
    folders: dict[str, dict[str, Any]] = {}
    forks = fork_server()
    with loading(threads, notes=1) as phases:
        from ...models.compile import part_of
        from ...models.generation.folder import found_or_compiled_as_it_is
        from ..config import Address, load_settings
        from ..service.running import bind

        bind(Address("127.0.0.1", port), 1).close()  # a port that is taken is said before anything slow happens
        cache = load_settings().client.cache
        chosen = None if plan is None else read_plan(plan)
        phases.end("load")
        with compiling(phases) as progress:
            for number, (name, given) in enumerate(zip(names, model, strict=True)):
                share = part_of(progress, number / len(names), (number + 1) / len(names), f"{name}: ")
                folder = found_or_compiled_as_it_is(given, cache, plan=chosen, progress=share)
                folders[name] = {"folder": folder.absolute(), "server": LOCAL}
    note("all parties run on this machine: this is for trying; --print-config says what a deployment needs")
    _serve(None, threads, {"gateway.listen": f"127.0.0.1:{port}", "gateway.key": key_file, "gateway.models": folders})
    del forks


def _serve(config: Path | None, threads: int, flags: Mapping[str, Any]) -> None:
    with loading(threads):
        from ..config import load_settings
        from ..gateway.serving import serve

        settings = load_settings(config, **flags)
    said = _Said()
    serve(settings, said.listening, said.opened)
    aside().print("stopped", markup=False)


class _Said:
    """What a gateway says of itself, on stderr: results go to stdout, and it has none."""

    def __init__(self) -> None:
        self._at: Any = None
        self._shown: set[str] = set()  # tasks

    def listening(self, at: Any) -> None:
        """`at`: gateway.serving.Listening."""
        self._at = at
        aside().print(f"[bold]Blindformer gateway[/]   {at.url}/v1   a page for people: {at.url}/")
        aside().print(f"key      {at.key_place}", markup=False)
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
    text = {"input": "I forgot my login."}
    path, body = "/v1/embeddings", {"model": model.name, **text}
    if model.talks:
        path, body = "/v1/chat/completions", {"model": model.name, "messages": [{"role": "user", "content": "Hi"}]}
    elif not model.embeds:
        path = "/classify"
    head = "Authorization: Bearer "
    key = f"sed 's/^/{head}/' {shlex.quote(at.key_place)}"
    if not Path(at.key_place).is_absolute():
        key = f"printf '{head}%s' \"${at.key_place}\""
    return f"{key} | curl -H @- {at.url}{path} --json {shlex.quote(json.dumps(body))}"


def _called(given: str) -> str:
    """The name of a model: as it was named, or that of its file or folder."""
    path = Path(given).expanduser()
    if not path.exists():
        return given
    path = path.resolve()
    return path.stem if path.is_file() else path.parent.name if path.name == "client" else path.name


def _deployment(models: Mapping[str, str]) -> str:
    """blindformer.toml and the commands for these models, by name, on machines of their own."""
    from ...models.cached import is_compiled
    from ...models.generation.folder import talks

    if found := next((model for model in models.values() if is_compiled(model)), None):
        raise BlindformerError(f"{found}: is compiled already; give the model's own folder to --print-config")
    dealer, make = "dealer.example.org:7444", []
    serve, sections = [], []
    for number, (name, model) in enumerate(models.items()):
        port, folder = 7443 + 10 * number, f"compiled/{_called(name).rpartition('/')[2]}"
        chat = " --chat" if talks(model) else ""
        make.append(f"blindformer compile {shlex.quote(model)}{chat} --out {folder}")
        serve.append(f"blindformer serve {folder}/server --config blindformer.toml --listen 0.0.0.0:{port}")
        address = f"server.example.org:{port}"
        sections.append(f'[gateway.models.{json.dumps(name)}]\nfolder = "{folder}/client"\nserver = "{address}"\n')
    hosts = "--host server.example.org --host dealer.example.org"
    commands = {
        "the model's owner": make,
        "who gives certificates": [f"blindformer certs make certs {hosts}"],
        "the dealer": ["blindformer dealer --config blindformer.toml --listen 0.0.0.0:7444"],
        "the server": serve,
        "the client": ["blindformer gateway --config blindformer.toml"],
    }
    lines = [f"#   {who}\n" + "".join(f"#     {line}\n" for line in some) for who, some in commands.items()]
    return (
        "# blindformer.toml, the same on every machine. Each gets ca.pem, its own certificate and key in certs/, and\n"
        "# its own part of compiled/: the server's stays with the model's owner. Commands, machine by machine:\n#\n"
        + "".join(lines)
        + f'\n[parties.server]\naddress = "server.example.org:7443"\n\n[parties.dealer]\naddress = "{dealer}"\n\n'
        + '[certificates]\nfolder = "certs"\n\n'
        + "\n".join(sections)
    )
