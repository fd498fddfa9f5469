# pyright: reportMissingImports=false
"""The whole of it on this machine: clients, rounds, and a Hugging Face folder that runs privately as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from ..approximations import Plan, approximate, calibrate, out_of_range, restore
from ..models.building import CALIBRATION_IMAGES
from ..models.data import Dataset, keep_reading
from ..models.distillation.batches import in_order
from ..models.distillation.checkpoints import check_new, locked, storing
from ..models.distillation.teacher import judged
from ..models.loading.heads import save_model
from ..models.loading.huggingface import huggingface
from ..models.loading.media import image_of
from ..parties.receipts.receipt import Receipt, issue_federated
from ..parties.receipts.statement import Consumption, Signer
from ..parties.reports.evaluation import COLOURS, PRIVATE, new_figure, png
from ..versions import spoken_version, versions
from .client import client_app
from .examples import PARTITION, ExampleSource, dataset_of, deal
from .rounds import Federation, Progress, Round
from .settings import FederateError, FederateSettings
from .subject import Subject, begin, settle
from .terms import check_needed
from .texts import merge

REPORT, WORK = "federation.json", ".federation"
CALIBRATION = 1024  # of the server's own examples that the final plan is calibrated on
IMAGES = 64  # of them that are stored beside a model of images, which cannot be compiled without any


@dataclass
class Federated:
    """The result. `report`: what is in federation.json."""

    folder: Path
    plan: Plan
    rounds: list[Round]
    report: dict[str, Any]


class LocalGrid:
    """Clients of this process, by node number, each with a configuration and a state of its own. They run one after the
    other, and messages are the objects that a SuperLink would carry: no Ray is needed, and a run starts at once."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any]) -> None:
        # Flower's messages say which run made them; its runtimes set this where a process begins.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self._app = app
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config=dict(own), state=RecordDict(), run_config=dict(config))
            for node, own in nodes.items()
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as a SuperNode does: a client's bug is its own
            return Message(Error(0, f"{type(error).__name__}: {error}"), reply_to=message)


def federate(
    out: str | Path,
    dataset: Dataset | None = None,
    *,
    nodes: Mapping[int, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Federated:
    """Train a compact model among clients, all in this process, and store it.

    out        a new folder; one with an unfinished run of the same settings is gone on with
    dataset    instead of the one that the setting `data` names
    nodes      configurations of the clients by number, with the terms of each (terms.py; default: one for each part of
               the data set, on any terms)
    settings   fields of `FederateSettings`

    Errors: BlindformerError, one line with the remedy.
    """
    chosen, out = FederateSettings(**settings), Path(out)
    check_needed(nodes or {}, chosen)
    with locked(out, "trains"):
        dataset = dataset or dataset_of(chosen)
        chosen = settle(chosen, dataset)
        if nodes is None:
            deal(dataset.train.labels, chosen.clients, chosen.alpha, chosen.seed)  # before anything slow happens
        run, plan = prepare(chosen, dataset, out, progress)
        parts = nodes or {i + 1: {PARTITION: i} for i in range(chosen.clients)}
        run.run(LocalGrid(client_app(ExampleSource(run.data)), parts, chosen.to_config()))
        return finish(run, plan, out)


def prepare(settings: FederateSettings, data: Dataset, out: Path, progress: Progress | None) -> tuple[Federation, Plan]:
    """The server's side before its first round. Errors: DistillError if `out` holds a model already."""
    check_new(out, out / WORK)
    settings = settle(settings, data)
    subject, plan, about = begin(data, settings)
    return Federation(settings, data, subject, about, out / WORK, progress), plan


def finish(run: Federation, plan: Plan, out: Path) -> Federated:
    """Calibrate the plan on the server's own examples, and write everything.

    Errors: FederateError if no client ever took part: what there is was not trained. Where the draw is a secret, only
    with what one of them has said: that none was drawn is nobody's to know.
    """
    if not run.took_part and (run.first_lost or not run.settings.secret_draw):
        name, why = run.first_lost or ("nobody", "was asked")
        raise FederateError(f"no client took part in any round; {name}: {why}")
    subject, data = run.subject, run.data
    travelled, after = sum(p.numel() for p in subject.trained().values()), subject.digest()
    restore(subject.model)
    merge(subject.model)
    plan = calibrate(subject.model, subject.measured(data.validation.subset(CALIBRATION, run.settings.seed)), plan)
    test: Any = subject.encode(data.test)
    left = out_of_range(subject.model, [test.batch(some) for some in in_order(test.lengths, 32)], plan)
    approximate(subject.model, plan)
    with torch.no_grad():
        accuracy = judged(subject.model, test)["accuracy"]
    restore(subject.model)
    report = {
        "data": {"name": data.name, "labels": list(data.labels), "train": len(data.train),
                 "validation": len(data.validation), "test": len(data.test)},
        "settings": run.settings.model_dump(),
        "weights_that_travel": travelled,
        "weights_before": run.before,
        "weights_after": after,
        "test_accuracy": accuracy,
        "epsilon": run.history[-1].epsilon if run.history else None,
        "sites_out_of_range": sorted(left),
        "rounds": [asdict(r) for r in run.history],
    }  # fmt: skip
    _save(subject, data, plan, report, out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return Federated(out, plan, run.history, report)


def _save(subject: Subject, data: Dataset, plan: Plan, report: dict[str, Any], out: Path) -> None:
    with storing(str(out)), huggingface():
        out.mkdir(exist_ok=True)
        subject.processor.save_pretrained(out)
        plan.save(out)
        keep_reading(data, out)
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if data.kind == "image":
            _save_images(data, out / CALIBRATION_IMAGES)
        save_model(subject.model, out)


def _save_images(data: Dataset, folder: Path) -> None:
    """Some of the server's own images, never a client's: ranges of the compiled program are measured on them."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(data.validation.subset(IMAGES).items):
        image_of(image).save(folder / f"{number:02d}.png")


def receipt_of(result: Federated, spent: Consumption, signer: Signer, prices: Any = None) -> Receipt:
    """What the server of a run vouches for. `spent`: by this command and its processes."""
    settings = FederateSettings.model_construct(**result.report["settings"])  # valid; all that was open is settled
    weights, counts = result.report["weights_that_travel"], [round_.clients for round_ in result.rounds]
    sent = received = None
    if not settings.secret_draw:  # which bytes and seconds would tell of
        answers = sum(count or 0 for count in counts)
        sent = 4 * weights * (answers + sum(len(round_.lost) for round_ in result.rounds))
        received = (8 if settings.secagg else 4) * weights * answers
    epsilon = result.report["epsilon"]
    fields = {
        "spent": None if settings.secret_draw else spent,
        "blindformer": spoken_version(),
        "versions": versions("flwr"),
        "settings": settings.fingerprint(),
        "rounds": len(result.rounds),
        "clients": settings.clients,
        "strategy": settings.strategy,
        "aggregated": "masked sums" if settings.secagg else "updates",
        "weights": weights,
        "sent": sent,
        "received": received,
        "weights_before": result.report["weights_before"],
        "weights_after": result.report["weights_after"],
        "privacy": settings.dp,
        "epsilon": None if epsilon is None else f"{epsilon:.6f}",
        "delta": None if epsilon is None else str(settings.delta),
    }
    return issue_federated(fields, signer, prices)


# Accuracy, and epsilon where there is one, over a run's rounds.


def rounds_figure(result: Federated) -> bytes:
    """A PNG. Errors: FigureError without matplotlib."""
    figure, axes = new_figure()
    numbers = [r.number for r in result.rounds]
    axes.plot(numbers, [100 * r.accuracy for r in result.rounds], "o-", markersize=3, color=COLOURS["clear"])
    test = 100 * result.report["test_accuracy"]
    axes.axhline(test, linestyle=":", color=COLOURS["torch"])
    axes.annotate(f"the model that came out, on test: {test:.1f} %", (numbers[0], test), fontsize=8, va="bottom")
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("accuracy on validation, %")
    axes.grid(alpha=0.3)
    settings = result.report["settings"]
    if result.report["epsilon"] is not None:
        other = axes.twinx()
        other.plot(numbers, [r.epsilon for r in result.rounds], "--", color=PRIVATE)
        other.set_ylim(bottom=0)
        other.set_ylabel(f"epsilon at delta {settings['delta']:g} (dashed)", color=PRIVATE)
    spread = f" (Dirichlet {settings['alpha']:g})" if settings["alpha"] else ""
    clients = f"{settings['clients']} clients{spread}"
    about = [result.report["data"]["name"], clients, settings["strategy"], f"plan {result.plan.name}"]
    axes.set_title(", ".join(about), fontsize=9)
    return png(figure)
