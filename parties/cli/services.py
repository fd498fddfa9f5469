"""`blindformer serve`, `dealer` and `helper`: the long-lived services, whose settings a file has; and
`serve --party NAME`: one of N parties of protocol crypten, for one session."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Exit, Option

from ...errors import BlindformerError
from ...versions import versions
from ..addresses import is_loopback
from ..config import Role, Settings, load_settings, parse_address
from ..registry import compiled_for, dealt, find, find_served, of_parties, resolve, served_with
from . import options
from .commands import Needs, Without, check
from .items import InputOptions, raise_if_all
from .output import MB, answer_table, banner, console, good_until, note, print_json, row_of, similarities
from .steps import loading

if TYPE_CHECKING:  # importing it takes seconds
    from ..client.party_runner import PartyRunner, QueryResult
    from ..service.service import Service
    from ..session.parties import Parties
    from ..transport.tls import Listener

DEALT, OF_PARTY = Without("--protocol ckks", "--party"), Needs("--party")


@dataclass(frozen=True)
class ServiceOptions:
    """The options of every service. All other settings are keys of the file."""

    config: options.Config = None
    certs: options.Certs = None
    listen: Annotated[
        str | None, Option(help="HOST:PORT to listen at; port 0 takes a free one (default: the file's, else its own).")
    ] = None
    device: options.Device = None
    # For a program that starts a service for itself (launch/processes.py).
    local: options.Local = None

    def settings(
        self, role: Role, protocols: Collection[str] | None, own: Mapping[str, Any], **shared: Any
    ) -> Settings:
        """The settings that the options stand for, over the file's. `own`: of the role's section; `shared`: others.

        Errors: ConfigError; BlindformerError where a part of a compiled folder is missing.
        """

        shared |= {"certificates.folder": self.certs}
        own = {**own, "listen": self.listen, "device": self.device}
        settings = load_settings(
            self.config, protocols, **shared, **{f"{role}.{name}": value for name, value in own.items()}
        )
        _check_folder(getattr(settings, role).folder)
        return settings

    def run(self, kind: type[Service], settings: Settings) -> None:
        """Serve until a signal stops it. Where its log is for people, it says what it is when it is ready."""
        from ..launch import LocalOptions
        from ..service.start import run

        announce = show if getattr(settings, kind.role).log_format == "text" else None
        local = LocalOptions.read(self.local)
        run(kind, settings, announce, 0 if local.lifeline else None, local)


@options.grouped
def serve(
    *,
    ctx: Context,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[FOLDER]",
            help="The server's part of a compiled folder (default: compiled/server). With --party: its inputs.",
        ),
    ] = None,
    given: ServiceOptions,
    protocol: Annotated[options.Served, Without("--party")] = None,
    dealer: Annotated[options.Dealer, DEALT] = None,
    party: Annotated[
        str | None,
        Option(help="This party's name in the file (protocol crypten; default: none)."),
    ] = None,
    file: Annotated[options.Files, OF_PARTY] = None,
    form: Annotated[options.Form, OF_PARTY] = "text",
) -> None:
    """Serve a compiled model to many clients, until Ctrl-C or SIGTERM. SIGHUP reloads certificates.

    With --party: one party of a session of N parties. All run this with the same file. The first party with data asks a
    query for each text or file; the others with data give equally many. Their dealer is blindformer dealer.
    """
    if party is not None:
        take_part(party, words or [], file, given.config, given.certs, given.listen, given.device, form, given.local)
        return
    folder, *others = [*map(Path, words or []), None]
    if others[1:]:
        raise BlindformerError(f"{others[0]}: is one word too many; give one folder, or quote its name")
    shared = {"session.protocol": protocol or compiled_for(folder), "parties.dealer.address": dealer}
    settings = given.settings("server", None, {"folder": folder}, **shared)
    check(ctx, config=None, protocol=settings.session.protocol)
    for adapter in settings.server.adapters.values():
        _check_folder(adapter)
    given.run(resolve(find_served(settings.session.protocol).service), settings)


@options.grouped
def dealer(
    *,
    folder: Annotated[
        Path | None,
        Argument(help="The dealer's part of a delegated model (default: the file's, else none)."),
    ] = None,
    given: ServiceOptions,
    protocol: Annotated[
        str | None, Option(**options.one_of(*dealt()), help="Whose parties it deals to (default: beaver).")
    ] = None,
) -> None:
    """Deal correlated randomness to a session's parties, until Ctrl-C or SIGTERM. SIGHUP reloads certificates."""
    shared = {"session.protocol": protocol or compiled_for(folder)}
    settings = given.settings("dealer", dealt(), {"folder": folder}, **shared)
    given.run(resolve(find(settings.session.protocol).dealer), settings)


@options.grouped
def helper(
    *,
    folder: Annotated[
        Path | None,
        Argument(help="The helper's part of a compiled folder (default: the file's, else compiled/helper)."),
    ] = None,
    given: ServiceOptions,
    server: options.Server = None,
    dealer: options.Dealer = None,
) -> None:
    """Run the second server, which computes in place of data owners, until Ctrl-C or SIGTERM.

    Its operator must not be the first server's. SIGHUP reloads certificates.
    """
    shared = {"parties.server.address": server, "parties.dealer.address": dealer, "session.topology": "helper"}
    settings = given.settings("helper", served_with("dealer"), {"folder": folder}, **shared)
    for adapter in settings.helper.adapters.values():
        _check_folder(adapter)
    from ..service.helper import HelperService

    given.run(HelperService, settings)


def _check_folder(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise BlindformerError(f"{folder}: there is no such folder; give the one that compile wrote")


def show(service: Service) -> None:
    """The banner of a service that serves, on stderr: results go to stdout, and a service has none."""
    from ...levels import slow
    from ..certificates.tls_folder import CA_KEY
    from ..service.service import SECURITY_BITS

    limits, expires = service.limits, service.identity.expires
    lines = [f"serves  {service.about}", *(f"        program {program[:16]}" for program in service.programs)]
    lines += [f"        weights {commitment}" for commitment in service.commitments]
    lines.append(f"at  {service.address}   {good_until(expires)}, {(expires - time.time()) / 86400:.0f} days")
    if service.exporter is not None:
        lines.append(f"metrics  http://{service.exporter.address}/metrics")
    if service.limit:
        lines.append(f"limit  {service.limit}")
    if not is_loopback(service.address.host) and (key := service.identity.folder / CA_KEY).exists():
        lines.append(f"warning  {key} lies here: who reads it can pass for any party; keep the CA's key offline")
    if why := slow():
        lines.append(f"slow  {'; '.join(why)}")
    at_once = f"{limits.workers} {'query' if limits.workers == 1 else 'queries'} at once"
    lines.append(f"takes  {limits.sessions} sessions, {at_once}, {limits.queue} in the queue")
    banner(f"{service.role}[/]   {SECURITY_BITS} bits", service.adversary, service.helpers, service.together, lines)


def take_part(
    name: str,
    words: list[str],
    files: list[Path] | None,
    config: Path | None,
    certs: Path | None,
    listen: str | None,
    device: str | None,
    form: str,
    local: str | None,
) -> None:
    """As party `name` of the file, in one session."""
    from ..session.parties import PartiesError

    if config is None:
        raise PartiesError(f"--party {name}: the parties are named in a file; add --config FILE")
    settings = load_settings(config, of_parties(), **{"certificates.folder": certs})
    section = settings.crypten.parties.get(name)
    with loading(section.threads if section else 1, notes=1) as phases:
        if local is not None:
            from ..client.party_runner import run_for_launcher
            from ..launch import LocalOptions

            run_for_launcher(settings, name, LocalOptions.read(local))
            return
        from ..client.party_runner import PartyRunner

        try:
            at = None if listen is None else parse_address(listen)
        except ValueError as error:
            raise PartiesError(f"--listen {listen}: {error}") from None
        runner = PartyRunner(settings, name, listen=at, device=device)
        if runner.values or words or files:
            runner.give(_items(runner, words, InputOptions(files)))
        phases.end("load")
        listener = runner.listen()
        _banner(runner, listener)
        answered: list[QueryResult] = []
        broken: BlindformerError | None = None
        report = lambda now, answer: answered.append(runner.read(now, answer))  # noqa: E731
        try:
            runner.take_part(listener, report, progress=phases.step, refused=_refused)
        except BlindformerError as error:  # what was answered before is good
            broken = error
    if runner.unasked and broken is None:
        note(f"{runner.unasked} inputs were not asked for")
    failed = [item for item in answered if item.error is not None]
    for item in failed:
        note(str(item.error))
    if answered or broken is None:
        (_print_json if form == "json" else _show)(runner, answered)
    if broken is not None:
        raise broken
    if failed:
        raise Exit(1)


def _items(runner: PartyRunner, words: list[str], inputs: InputOptions) -> list[str]:
    """This party's inputs, one for each query. Errors: BlindformerError."""
    named = [*words, *map(str, inputs.file or [])]
    if named and all(item.endswith(".safetensors") for item in named):
        return named
    kind, trained = ("", None) if runner.client is None else (runner.client.kind, runner.client.about.get("columns"))
    items = inputs.read(kind, words, trained)
    for index, item in enumerate(items):  # one query for each: all parties must give equally many
        raise_if_all(items[index : index + 1], {0: item.error} if item.error else {})
    return [item.value for item in items]


def _banner(runner: PartyRunner, listener: Listener | None) -> None:
    from ...protocols.crypten import PROTOCOL
    from ..service.service import COLLUDING, SECURITY_BITS

    lines = [f"parties  {who_is_who(runner.parties)}", f"program  {runner.model.program.hash()[:16]}"]
    at = "dials all others" if listener is None else "at  {}:{}".format(*listener.address)
    lines.append(f"{at}   {good_until(runner.identity.expires)}")
    title = f"{runner.name}[/]   protocol {PROTOCOL.name}   {SECURITY_BITS} bits"
    helpers = "an offline dealer, which sees no input, no weight and no opened value"
    banner(title, PROTOCOL.security, helpers, f"the dealer and any party {COLLUDING}", lines)


def who_is_who(parties: Parties) -> str:
    """One line: every party, with what it has and gets."""
    named: dict[str, list[str]] = {name: [] for name in parties.names}
    named[parties.names[0]].append("the model")
    for item, name in parties.owners.items():
        named[name].append(item)
    if parties.data or not parties.owners:
        named[parties.names[parties.asker] if not parties.data else parties.data].append("the data")
    named[parties.names[parties.recipient_rank]].append("the answers")
    return "   ".join(name + (f" ({', '.join(has)})" if has else "") for name, has in named.items())


def _refused(error: Any) -> None:
    note(f"turned away: {error}")


def _print_json(runner: PartyRunner, answered: list[QueryResult]) -> None:
    rows = []
    for item in answered:
        row = {} if item.item is None else {"input": item.item}
        if item.error is not None or runner.gets_answers:
            row |= row_of(runner.task, item)
        took = item.timings
        row |= {"offline_s": took.offline_s, "online_s": took.online_s, "offline_bytes": took.offline_bytes}
        row |= {"online_sent_bytes": took.online.sent, "online_received_bytes": took.online.received}
        rows.append(row | {"rounds": took.rounds})
    print_json(
        {
            "party": runner.name,
            "protocol": runner.settings.session.protocol,
            "parties": list(runner.parties.names),
            "recipient": runner.parties.names[runner.parties.recipient_rank],
            "program": runner.model.program.hash(),
            "setup_bytes": runner.setup_bytes,
            "queries": len(answered),
            "results": rows,
            "versions": versions(),
        }
    )


def _show(runner: PartyRunner, answered: list[QueryResult]) -> None:
    out, count = console(), len(answered)
    recipient = runner.parties.names[runner.parties.recipient_rank]
    if runner.gets_answers:
        rows = [replace(item, item=item.item or f"query {number}") for number, item in enumerate(answered, 1)]
        out.print(answer_table(runner.task, rows, similarities(runner.task, rows)))
    else:
        out.print(f"took part in {count} {'query' if count == 1 else 'queries'}; {recipient} has the answers")
    if answered:
        spent = [item.timings for item in answered]
        out.print(
            f"\n{'on average: ' if count > 1 else ''}"
            f"offline {sum(t.offline_s for t in spent) / count:.2f} s   online "
            f"{sum(t.online_s for t in spent) / count:.2f} s, {spent[0].online.sent / MB:.1f} MB sent, "
            f"{spent[0].online.received / MB:.1f} MB received, {spent[0].rounds} rounds"
        )
