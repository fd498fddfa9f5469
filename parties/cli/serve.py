"""`blindformer serve`: the server, for many clients at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..heap import keep_freed_memory
from . import options
from .service_options import Service, show
from .steps import check_folder, prepare


@dataclass(frozen=True)
class ServerOptions:
    """Of section [server], by their names there."""

    spool: Annotated[Path | None, Option(help="Keep correlations made ahead in this folder.")] = None
    queries_each: Annotated[int | None, Option(help="Texts that one certificate's name may ask in a period.")] = None
    queries_period: Annotated[float | None, Option(help="The period, in seconds (default: a day).")] = None
    state: Annotated[Path | None, Option(help="Count them in this folder, over restarts.")] = None
    keys_gb: Annotated[float | None, Option(help="ckks: what clients' evaluation keys may take on disk.")] = None
    keys_memory_gb: Annotated[float | None, Option(help="ckks: what they may take in a worker's memory.")] = None
    keys_seconds: Annotated[float | None, Option(help="ckks: seconds of no use after which keys are gone.")] = None
    weights_memory_gb: Annotated[float | None, Option(help="ckks: what encoded weights may take there.")] = None
    query_processes: Annotated[int | None, Option(help="ckks: processes that share one query (default: 1).")] = None


@options.grouped
def server(
    *,
    folder: Annotated[Path | None, Argument(help="The server's part of a compiled folder.")] = None,
    protocol: options.Served = None,
    dealer: options.DealtFrom = None,
    topology: Annotated[str | None, Option(help="dealer, or helper: a second server takes the client's seat.")] = None,
    own: ServerOptions,
    any_ring: options.AnyRing = False,
    given: Service,
) -> None:
    """Serve a compiled model to many clients at once, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..registry import find_served, resolve

    flags = given.flags("server", folder=folder, **vars(own))
    shared = {
        "session.protocol": protocol,
        "session.topology": topology,
        "parties.dealer.address": dealer,
    }
    settings = load_settings(given.config, **shared, **flags)
    check_folder(settings.server.folder)
    more: dict[str, Any] = {"more": ["--any-ring"]} if any_ring else {}
    resolve(find_served(settings.session.protocol).service)(
        settings, show if settings.server.log_format == "text" else None, given.stdin, **more
    )
