"""`blindformer helper`: a second server in the client's seat, for data owners who only split and add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..heap import keep_freed_memory
from .output import prepare
from .serve import (
    CertsOption,
    ConfigOption,
    GraceOption,
    IdleOption,
    LifelineOption,
    ListenOption,
    LogFormatOption,
    MetricsOption,
    QuerySecondsOption,
    QueueOption,
    SessionsOption,
    ShareOption,
    TimeoutOption,
    WorkersOption,
    service_flags,
    show,
)


def helper(
    folder: Annotated[Path | None, typer.Argument(help="The helper's part of a compiled folder.")] = None,
    config: ConfigOption = None,
    certs: CertsOption = None,
    listen: ListenOption = None,
    server: Annotated[str | None, typer.Option("--server", help="HOST:PORT of the server.")] = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="HOST:PORT of the dealer.")] = None,
    timeout: TimeoutOption = None,
    sessions: SessionsOption = None,
    workers: WorkersOption = None,
    queue: QueueOption = None,
    share: ShareOption = None,
    idle: IdleOption = None,
    query_seconds: QuerySecondsOption = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Keep the server's masked weights here.")] = None,
    metrics: MetricsOption = None,
    grace: GraceOption = None,
    log_format: LogFormatOption = None,
    lifeline: LifelineOption = False,
) -> None:
    """Take the client's seat for many data owners at once. Whoever runs the server must not run this.

    Until Ctrl-C or SIGTERM; SIGHUP reads the certificates again.
    """
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..service.running import run

    flags = service_flags(
        "helper", certs, timeout, listen=listen, sessions=sessions, workers=workers, queue=queue, share=share,
        idle=idle, query_seconds=query_seconds, metrics=metrics, grace=grace, log_format=log_format,
    )  # fmt: skip
    own = {
        "helper.folder": folder,
        "helper.cache": cache,
        "parties.server.address": server,
        "parties.dealer.address": dealer,
        "session.topology": "helper",
    }
    settings = load_settings(config, ("beaver",), **flags, **own)
    from ..helper.serving import Helping

    run(
        "helper",
        settings.helper,
        lambda limits, scratch: Helping(settings, limits, scratch),
        show if settings.helper.log_format == "text" else None,
        lifeline=0 if lifeline else None,
    )
