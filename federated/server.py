# pyright: reportMissingImports=false
"""The server's half of the Flower app, for Flower's own runtimes: rounds, checkpoints, and the folder that comes out.

Its configuration is that of the settings, and `out`: the folder, on the server's machine. A run that was cut off goes
on from its last round when it is submitted again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..models.distillation.checkpoints import check_new, locked
from .examples import dataset_of
from .federate import WORK, finish, prepare
from .rounds import Round
from .settings import OUT, FederateError, FederateSettings

PROGRESS = "progress.jsonl"
FAILURE = "failure.json"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Errors: BlindformerError; what went wrong is in the folder, too, for whoever submitted the run."""
    out = Path(str(context.run_config.get(OUT, "")))
    if not out.is_absolute():
        raise FederateError(f"out {str(out)!r}: give the server's folder in full")
    work = out / WORK
    with locked(out, "trains"):
        check_new(out, work)
        work.mkdir(parents=True, exist_ok=True)
        (work / FAILURE).unlink(missing_ok=True)
        try:
            settings = FederateSettings.of(context.run_config)

            def show(round_: Round, total: int) -> None:
                with (work / PROGRESS).open("a") as file:
                    file.write(json.dumps(asdict(round_)) + "\n")

            run, plan = prepare(settings, dataset_of(settings), out, show)
            run.run(grid)
            finish(run, plan, out)
        except Exception as error:
            if work.exists():
                (work / FAILURE).write_text(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
            raise
