"""`blindformer dealer`: the party that makes correlated randomness, and needs no model."""

from __future__ import annotations

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


def dealer(
    config: ConfigOption = None,
    certs: CertsOption = None,
    listen: ListenOption = None,
    timeout: TimeoutOption = None,
    sessions: SessionsOption = None,
    workers: WorkersOption = None,
    queue: QueueOption = None,
    share: ShareOption = None,
    idle: IdleOption = None,
    query_seconds: QuerySecondsOption = None,
    metrics: MetricsOption = None,
    grace: GraceOption = None,
    log_format: LogFormatOption = None,
    lifeline: LifelineOption = False,
) -> None:
    """Deal correlations to servers and their clients, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..service.running import run

    flags = service_flags(
        "dealer", certs, timeout, listen=listen, sessions=sessions, workers=workers, queue=queue, share=share,
        idle=idle, query_seconds=query_seconds, metrics=metrics, grace=grace, log_format=log_format,
    )  # fmt: skip
    settings = load_settings(config, ("beaver",), **flags)
    from ..service.dealer import Dealing

    run(
        "dealer",
        settings.dealer,
        lambda limits, scratch: Dealing(settings, limits, scratch),
        show if settings.dealer.log_format == "text" else None,
        lifeline=0 if lifeline else None,
    )
