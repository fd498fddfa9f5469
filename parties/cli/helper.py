"""`blindformer helper`: a second server in the client's seat, for data owners who only split and add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..heap import keep_freed_memory
from .output import prepare
from .service_options import Given, service_command, show


@service_command
def helper(
    given: Given,
    folder: Annotated[Path | None, typer.Argument(help="The helper's part of a compiled folder.")] = None,
    server: Annotated[str | None, typer.Option("--server", help="HOST:PORT of the server.")] = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="HOST:PORT of the dealer.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Keep the server's masked weights here.")] = None,
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
    settings = load_settings(given.config, served_with("dealer"), **given.flags(folder=folder, cache=cache), **own)
    from ..service.helper import HelperService

    run(
        "helper",
        settings.helper,
        lambda limits, scratch: HelperService(settings, limits, scratch),
        show if settings.helper.log_format == "text" else None,
        lifeline=given.lifeline,
    )
