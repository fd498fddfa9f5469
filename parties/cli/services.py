"""`blindformer serve`, `dealer` and `helper`: the long-lived services. A file has their settings."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from ...errors import BlindformerError
from ..addresses import is_loopback
from ..config import Role, Settings, load_settings
from ..registry import compiled_for, find_served, resolve, served_with
from . import options
from .commands import Needs, Without, check
from .output import banner, good_until
from .party import take_part

if TYPE_CHECKING:
    from ..service.service import Service

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
        from ..service.local_options import LocalOptions
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
        Option(help="This party's name in the file, or dealer: one session of protocol crypten (default: none)."),
    ] = None,
    file: Annotated[options.Files, OF_PARTY, Without("--party dealer")] = None,
    form: Annotated[options.Form, OF_PARTY] = "text",
) -> None:
    """Serve a compiled model to many clients, until Ctrl-C or SIGTERM. SIGHUP reloads certificates.

    With --party: one party of a session of N parties. All run this with the same file. The first party with data asks a
    query for each text or file; the others with data give equally many.
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
        str | None, Option(**options.one_of(*served_with("dealer")), help="Whose server it deals to (default: beaver).")
    ] = None,
) -> None:
    """Deal correlated randomness to servers and clients, until Ctrl-C or SIGTERM. SIGHUP reloads certificates."""
    shared = {"session.protocol": protocol or compiled_for(folder)}
    settings = given.settings("dealer", served_with("dealer"), {"folder": folder}, **shared)
    given.run(resolve(find_served(settings.session.protocol).dealer), settings)


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
