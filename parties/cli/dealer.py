"""`blindformer dealer`: the party that makes correlated randomness, and needs no model."""

from __future__ import annotations

from ..heap import keep_freed_memory
from . import options
from .service_options import Service, show
from .steps import prepare


@options.grouped
def dealer(given: Service) -> None:
    """Deal correlations to servers and their clients, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..registry import served_with
    from ..service.running import run

    settings = load_settings(given.config, served_with("dealer"), **given.flags("dealer"))
    from ..service.dealer import DealerService

    run(
        "dealer",
        settings.dealer,
        lambda limits, scratch: DealerService(settings, limits, scratch),
        show if settings.dealer.log_format == "text" else None,
        lifeline=given.stdin,
    )
