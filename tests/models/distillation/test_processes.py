"""Several processes take the steps of one, end together, and only the first of them writes."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from blindformer.approximations import Plan, approximate
from blindformer.models.distillation import DistillError, distill, processes
from blindformer.models.distillation.batches import padded_length, tokenise
from blindformer.models.distillation.processes import ALONE, Processes, has_gpus
from blindformer.models.distillation.ranges import watching
from blindformer.models.distillation.stages import Pupil, hidden_stage, logit_stage
from blindformer.models.distillation.student import in_training, settled
from blindformer.models.distillation.teacher import classifier_of
from blindformer.models.distillation.training import Stage, train
from blindformer.models.distillation_settings import DistillSettings
from blindformer.models.loading.layers import with_layers
from blindformer.models.loading.load import load
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually
from safetensors.torch import load_file


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


TABLE = "text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(40))
WORDS = [
    *("--data", "../some.csv", "--plan", "he", "--out", "out", "--set", "teacher_epochs=1", "--set", "hidden_epochs=0"),
    *("--set", "logit_epochs=2", "--set", "augment=0", "--set", "hidden=8", "--set", "heads=2"),
]


class Launched:
    """Two processes as a launcher starts them, each in a folder of its own, as on machines of their own."""

    def __init__(self, teacher: Path, place: Path) -> None:
        (place / "some.csv").write_text(TABLE)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-m", "blindformer", "distill", "--teacher", str(teacher), *WORDS]
        self.running = []
        for rank in ("0", "1"):
            (place / rank).mkdir(exist_ok=True)
            env = {**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank}
            process = subprocess.Popen(
                command, cwd=place / rank, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self.running.append(process)

    def finish(self) -> list[tuple[int, str, str]]:
        """By rank: exit code, output, errors."""
        ended = [(process.communicate(timeout=PATIENCE), process.returncode) for process in self.running]
        return [(code, *outputs) for outputs, code in ended]


@pytest.fixture(scope="module")
def two(encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    return place, Launched(encoder, place).finish()


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "0" / "out" / "model.safetensors")


def test_of_processes_that_a_launcher_started_the_first_writes_and_speaks(two):
    place, ((first, output, _), other) = two
    assert first == 0
    assert "out is done:\n  blindformer evaluate" in output
    assert other == (0, "", "")
    assert list((place / "1").iterdir()) == []


def test_two_processes_end_with_the_weights_of_one(two, encoder, tmp_path, monkeypatch):
    """The same batches: a rate means the same. Sums in another order differ by float rounding, which Adam enlarges."""
    place, _ = two
    (tmp_path / "0").mkdir()
    (tmp_path / "some.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path / "0")
    subprocess.run(
        [sys.executable, "-m", "blindformer", "distill", "--teacher", str(encoder), *WORDS],
        check=True, timeout=PATIENCE, capture_output=True,
    )  # fmt: skip
    torch.testing.assert_close(weights(place), weights(tmp_path), rtol=1e-3, atol=1e-4)


def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(two, encoder, tmp_path):
    """Exactly, from the last checkpoint."""
    killed = Launched(encoder, tmp_path)
    checkpoint = tmp_path / "0" / "out" / ".distillation" / "teacher.safetensors"
    eventually(checkpoint.exists, "no checkpoint")
    killed.running[1].kill()
    code, _, errors = killed.finish()[0]
    assert code == 1
    assert "another training process ended" in errors
    assert "run the command again" in errors
    assert [code for code, *_ in Launched(encoder, tmp_path).finish()] == [0, 0]
    ours, whole = weights(tmp_path), weights(two[0])
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


# What is refused, and where one trains.


def test_several_processes_need_accelerate(encoder, few, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(DistillError, match=r"need the library accelerate; run: pip install 'blindformer\[scale\]'"):
        distill(encoder, few, tmp_path / "out")


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
