"""`blindformer serve`, `dealer` and `helper`: the long-lived services, and what their commands share."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from ...errors import BlindformerError
from ...models.delegated import is_delegated
from ..addresses import is_loopback
from ..config import DealerSection, HelperSection, Role, ServerSection, Settings, load_settings
from ..registry import DEFAULT, find, find_served, resolve, served_with
from . import options
from .options import Needs, Without, check
from .output import banner, good_until

if TYPE_CHECKING:
    from ..service.service import Service

ENCRYPTED, DEALT = Needs("--protocol ckks", "--config"), Without("--protocol ckks")
COUNTED = Needs("--queries-each", "--config")
OF_SERVER = options.OfSection(
    ServerSection,
    "spool_gb",
    spool=DEALT,
    database=Needs("--spool", "--queries-each", "--audits", "--config"),
    device=DEALT,
    state=Needs("--queries-each", "--audits", "--config"),
    queries_period=COUNTED,
    **dict.fromkeys(("keys_gb", "keys_memory_gb", "keys_seconds", "weights_memory_gb", "query_processes"), ENCRYPTED),
)


@dataclass(frozen=True)
class ServiceOptions:
    """The options of every service that are no settings of its own section."""

    config: options.Config = None
    certs: options.Certs = None
    timeout: options.Silence = None
    # For a program that starts a service for itself (launch/processes.py).
    lifeline: Annotated[
        bool | None, Option("--lifeline", hidden=True, help="End the service when standard input does.")
    ] = None
    local: options.Local = None

    @property
    def stdin(self) -> int | None:
        """The file whose end is the service's, if it has one."""
        return 0 if self.lifeline else None

    def settings(
        self, role: Role, protocols: Collection[str] | None, own: Mapping[str, Any], **shared: Any
    ) -> Settings:
        """The settings (parties/config.py) that the options stand for. `own`: of the role's section; `shared`: others.

        Errors: ConfigError; BlindformerError where a part of a compiled folder is missing.
        """

        shared |= {"certificates.folder": self.certs, "session.timeout": self.timeout}
        settings = load_settings(
            self.config, protocols, **shared, **{f"{role}.{name}": value for name, value in own.items()}
        )
        folder = getattr(getattr(settings, role), "folder", None)
        if folder is not None and not folder.is_dir():
            raise BlindformerError(f"{folder}: there is no such folder; give the one that compile wrote")
        return settings

    def run(self, kind: type[Service], settings: Settings, any_ring: bool = False) -> None:
        """Serve until a signal stops it. Where its log is for people, it says what it is when it is ready."""
        from ..service.local_options import LocalOptions
        from ..service.service import run

        announce = show if getattr(settings, kind.role).log_format == "text" else None
        run(kind, settings, announce, self.stdin, replace(LocalOptions.read(self.local), any_ring=any_ring))


Adapters = Annotated[
    list[str] | None,
    Option(
        "--adapter",
        metavar="NAME=FOLDER",
        help="An adapter on the same base that was compiled elsewhere, to serve it, too: the same part of its compiled "
        "folder (default: those in FOLDER). May be repeated.",
    ),
]


def _adapters(given: list[str] | None) -> dict[str, Path] | None:
    """For the settings. Errors: LoadError; BlindformerError for a folder that is not there."""
    from ...models.loading.adapters import parse_adapters

    adapters = {name: folder.absolute() for name, folder in parse_adapters(given or []).items()}
    for folder in adapters.values():
        if not folder.is_dir():
            raise BlindformerError(f"{folder}: there is no such folder; give the one that compile wrote")
    return adapters or None


@options.grouped
def server(
    *,
    ctx: Context,
    folder: Annotated[
        Path | None,
        Argument(help="The server's part of a compiled folder (default: the file's, else compiled/server)."),
    ] = None,
    protocol: options.Served = None,
    dealer: Annotated[options.Dealer, DEALT] = None,
    topology: Annotated[options.Topology, DEALT] = None,
    audits: Annotated[options.Audits, DEALT] = None,
    adapter: Annotated[Adapters, DEALT] = None,
    own: Annotated[dict[str, Any], OF_SERVER],
    any_ring: options.AnyRing = False,
    given: ServiceOptions,
) -> None:
    """Serve a compiled model to many clients at once, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    if protocol is None and is_delegated(folder):
        protocol = find(DEFAULT).public
    shared = {"session.protocol": protocol, "session.topology": topology, "session.audits": audits}
    shared |= {"parties.dealer.address": dealer}
    own |= {"folder": folder, "adapters": _adapters(adapter)}
    settings = given.settings("server", None, own, **shared)
    check(ctx, config=None, protocol=settings.session.protocol, **vars(settings.server))
    entry = find_served(settings.session.protocol)
    given.run(resolve(entry.service), settings, any_ring=any_ring)


@options.grouped
def dealer(
    *,
    folder: Annotated[
        Path | None,
        Argument(help="The dealer's part of a delegated model (default: the file's, else none)."),
    ] = None,
    protocol: Annotated[
        str | None, Option(**options.one_of(*served_with("dealer")), help="Whose server it deals to (default: beaver).")
    ] = None,
    own: Annotated[dict[str, Any], options.OfSection(DealerSection, "folder")],
    given: ServiceOptions,
) -> None:
    """Deal correlations to servers and their clients, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    if protocol is None and is_delegated(folder):
        protocol = find(DEFAULT).public
    own |= {"folder": folder}
    settings = given.settings("dealer", served_with("dealer"), own, **{"session.protocol": protocol})
    entry = find_served(settings.session.protocol)
    given.run(resolve(entry.dealer), settings)


@options.grouped
def helper(
    *,
    folder: Annotated[
        Path | None,
        Argument(help="The helper's part of a compiled folder (default: the file's, else compiled/helper)."),
    ] = None,
    server: options.Server = None,
    dealer: options.Dealer = None,
    adapter: Adapters = None,
    own: Annotated[dict[str, Any], options.OfSection(HelperSection)],
    given: ServiceOptions,
) -> None:
    """Compute in the client's place, for many data owners at once. The operator of the server must not run this.

    Until Ctrl-C or SIGTERM; SIGHUP reads the certificates again.
    """
    shared = {"parties.server.address": server, "parties.dealer.address": dealer, "session.topology": "helper"}
    own |= {"folder": folder, "adapters": _adapters(adapter)}
    settings = given.settings("helper", served_with("dealer"), own, **shared)
    from ..service.helper import HelperService

    given.run(HelperService, settings)


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
