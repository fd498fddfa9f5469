"""`blindformer helper`: a second server in the client's seat, for data owners who only split and add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..heap import keep_freed_memory
from . import options
from .service_options import Service, show
from .steps import check_folder, prepare


@options.grouped
def helper(
    *,
    folder: Annotated[Path | None, Argument(help="The helper's part of a compiled folder.")] = None,
    server: Annotated[str | None, Option(help="HOST:PORT of the server.")] = None,
    dealer: options.DealtFrom = None,
    cache: Annotated[Path | None, Option(help="Keep the server's masked weights here.")] = None,
    given: Service,
) -> None:
    """Take the client's seat for many data owners at once. Whoever runs the server must not run this.

    Until Ctrl-C or SIGTERM; SIGHUP reads the certificates again.
    """
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..registry import served_with
    from ..service.running import run

    own = {
        "parties.server.address": server,
        "parties.dealer.address": dealer,
        "session.topology": "helper",
    }
    settings = load_settings(
        given.config, served_with("dealer"), **given.flags("helper", folder=folder, cache=cache), **own
    )
    check_folder(settings.helper.folder)
    from ..service.helper import HelperService

    run(
        "helper",
        settings.helper,
        lambda limits, scratch: HelperService(settings, limits, scratch),
        show if settings.helper.log_format == "text" else None,
        lifeline=given.stdin,
    )
