"""Several processes take the steps of one, end together, and only the first of them writes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
import torch
from blindformer.approximations import Plan, approximate
from blindformer.models.distillation import DistillError, distill, processes
from blindformer.models.distillation.batches import padded_length, tokenise
from blindformer.models.distillation.processes import ALONE, Processes, has_gpus, together
from blindformer.models.distillation.ranges import watching
from blindformer.models.distillation.stages import Pupil, hidden_stage, logit_stage
from blindformer.models.distillation.student import in_training, settled
from blindformer.models.distillation.teacher import classifier_of
from blindformer.models.distillation.training import Stage, train
from blindformer.models.distillation_settings import DistillSettings
from blindformer.models.loading.layers import with_layers
from blindformer.models.loading.load import load
from blindformer.tests.patience import PATIENCE
from safetensors.torch import load_file

from .conftest import FAST

SETTINGS = {**FAST, "logit_epochs": 2, "augment": 1, "checkpoint_steps": 2, "hidden": 8, "heads": 2, "hidden_epochs": 0}


class Stopped(Exception):
    pass


class Threads(Processes):
    """Processes that are threads of this one."""

    def __init__(self, rank: int, given: list[torch.Tensor], barrier: Barrier) -> None:
        self.rank, self.count, self._given, self._barrier = rank, len(given), given, barrier

    def total(self, values: torch.Tensor) -> torch.Tensor:
        self._given[self.rank] = values
        self._barrier.wait()
        summed = torch.stack(self._given).sum(0)
        self._barrier.wait()
        return summed


@pytest.mark.parametrize("texts", [16, 7, 1])
@pytest.mark.parametrize("make", [hidden_stage, logit_stage])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(encoder, few, make, texts):
    """However many texts each process has; a batch of fewer texts than processes counts once, too."""
    loaded = load(encoder)
    teacher = classifier_of(loaded, few.labels, seed=0).requires_grad_(False)
    teacher.set_attn_implementation("eager")
    tokens, batch = tokenise(loaded, few.train, 64), list(range(texts))
    tokens.labels[1::3] = -1  # some are unknown
    plan = in_training(settled(teacher, [tokens.batch(batch)], Plan.preset("fast")))
    settings = DistillSettings(range_weight=10.0)

    def step(team: Processes) -> tuple[dict[str, float], list[torch.Tensor]]:
        student = approximate(with_layers(teacher, [0, 1]), plan)
        student.requires_grad_(True)
        pupil = Pupil(student, copy.deepcopy(teacher), [0, 1], tokens, tokens, settings, {}, team)
        with watching(student, pupil.penalty):
            length = padded_length(tokens.lengths[i] for i in batch)
            loss, parts = make(pupil).loss(team.part(batch), length)
        loss.backward()
        numbers = dict(zip(("loss", *parts), team.totals(loss.item(), *parts.values()), strict=True))
        return numbers, [team.total(p.grad) for p in student.parameters() if p.grad is not None]

    numbers, gradients = step(ALONE)
    assert numbers["ranges"] > 0 or texts == 1
    given, barrier = [torch.empty(0)] * 2, Barrier(2, timeout=PATIENCE)
    with ThreadPoolExecutor(2) as pool:
        for theirs, added in pool.map(step, [Threads(rank, given, barrier) for rank in range(2)]):
            assert theirs == pytest.approx(numbers, rel=1e-5)
            for ours, wanted in zip(added, gradients, strict=True):
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()) + 1e-7)


@pytest.fixture(scope="module")
def two(encoder, few, tmp_path_factory):
    return distill(encoder, few, tmp_path_factory.mktemp("two") / "out", "he", processes=2, **SETTINGS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_two_processes_end_with_the_weights_of_one(two, encoder, few, tmp_path):
    """The same batches: a rate means the same. Sums in another order differ by float rounding, which Adam enlarges."""
    one = distill(encoder, few, tmp_path / "out", "he", **SETTINGS)
    torch.testing.assert_close(weights(two.folder), weights(one.folder), rtol=1e-3, atol=1e-4)
    assert [e["loss"] for e in two.report["history"]["logits"]] == pytest.approx(
        [e["loss"] for e in one.report["history"]["logits"]], rel=1e-4
    )
    assert multiprocessing.active_children() == []


def test_an_interrupted_run_ends_its_processes():
    def stop(number):
        raise Stopped

    with pytest.raises(Stopped):
        together(2, partial(sorted, [3]), key=stop)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(two, encoder, few, tmp_path):
    """Exactly, on as many processes."""

    def kill(now):
        if (now.stage, now.step) == ("logits", 5):
            os.kill(max(child.pid or 0 for child in multiprocessing.active_children()), signal.SIGKILL)

    def run(progress, count: int | None = 2):
        return distill(encoder, few, tmp_path / "out", "he", processes=count, progress=progress, **SETTINGS)

    with pytest.raises(DistillError, match="process 1 of 2: was killed by SIGKILL; run the same command again"):
        run(kill)
    assert multiprocessing.active_children() == []
    with pytest.raises(DistillError, match="with another number of processes"):
        run(None, count=None)
    seen = []
    distilled = run(seen.append)
    assert [now.stage for now in seen[:1]] == ["logits"]
    assert seen[0].step in (5, 6, 7)
    ours, theirs = weights(distilled.folder), weights(two.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert distilled.report == two.report


def test_of_processes_that_a_launcher_started_the_first_writes_and_speaks(encoder, tmp_path):
    """Each in a folder of its own, as on machines of their own."""
    (tmp_path / "some.csv").write_text(
        "text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(40))
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    words = ["distill", "--teacher", str(encoder), "--data", "../some.csv", "--plan", "fast", "--out", "out"]
    words += ["--teacher-epochs", "1", "--hidden-epochs", "1", "--logit-epochs", "1", "--augment", "0"]
    running = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        env = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-m", "blindformer", *words]
        running.append(
            subprocess.Popen(
                command, cwd=tmp_path / str(rank), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [process.communicate(timeout=PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert "out is done:\n  blindformer evaluate" in outputs[0][0]
    assert outputs[1] == ("", "")
    assert (tmp_path / "0" / "out" / "model.safetensors").exists()
    assert list((tmp_path / "1").iterdir()) == []


# What is refused, and where one trains.


def test_what_cannot_be_shared_is_refused(encoder, few, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(DistillError, match="processes 2: the launcher has started 3; leave the option out"):
        distill(encoder, few, tmp_path / "out", processes=2)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(DistillError, match="processes 0: give 1 or more"):
        distill(encoder, few, tmp_path / "out", processes=0)
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(DistillError, match=r"need the library accelerate; run: pip install 'blindformer\[scale\]'"):
        distill(encoder, few, tmp_path / "out", processes=2)


def test_processes_with_different_data_do_not_train_together(tmp_path):
    class Others(Processes):
        def each(self, value):
            return [value, "another"]

    model = torch.nn.Linear(1, 1)
    stage = Stage("teacher", 1, 0.1, lambda *part: (model.weight.sum(), {}), lambda: {"score": 0.0})
    with pytest.raises(DistillError, match="different settings, data or teachers; start all of them alike"):
        train(model, stage, [1], DistillSettings(), tmp_path / "file", "one", processes=Others())


@pytest.mark.parametrize(("gpus", "count", "taken"), [(0, 1, False), (1, 1, True), (1, 2, False), (8, 8, True)])
def test_processes_take_gpus_where_each_has_one_to_itself(monkeypatch, gpus, count, taken):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert has_gpus(count) is taken
