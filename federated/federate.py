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
