"""A run that is killed goes on exactly, and what is on disk is whole at every moment."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from blindformer.models.distillation import DistillError, checkpoints, distill
from blindformer.models.distillation.checkpoints import locked, read, write
from blindformer.tests.patience import PATIENCE
from safetensors.torch import load_file

from .conftest import FAST

LONGER = {**FAST, "teacher_epochs": 2, "hidden_epochs": 2, "logit_epochs": 2, "checkpoint_steps": 2}


class Killed(Exception):
    pass


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(encoder, few, tmp_path_factory):
    return distill(encoder, few, tmp_path_factory.mktemp("undisturbed") / "out", **LONGER)


SCRIPT = """
import os, pickle, signal, sys
import torch
torch.set_num_threads(1)
from blindformer.models.distillation import distill

def die(now):
    if (now.stage, now.step) == ("hidden", 7):
        os.kill(os.getpid(), signal.SIGKILL)

encoder, data, out, settings = pickle.load(sys.stdin.buffer)
distill(encoder, data, out, progress=die, **settings)
"""


def test_a_run_that_breaks_off_in_every_stage_ends_with_the_same_weights(encoder, few, tmp_path, undisturbed):
    """Again and again; once its process is killed."""
    last, killed = ("teacher", 0), ("hidden", 7)
    for ends in (("teacher", 3), ("hidden", 6), killed, ("logits", 1), ("logits", 9), None):
        if ends == killed:
            given = pickle.dumps((str(encoder), few, str(tmp_path / "out"), LONGER))
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT], input=given, timeout=PATIENCE, check=False, env=os.environ
            )
            assert done.returncode == -signal.SIGKILL
        else:
            seen = []

            def die(now, ends=ends, seen=seen):
                seen.append(now)
                if (now.stage, now.step) == ends:
                    raise Killed

            with pytest.raises(Killed) if ends else nullcontext():
                distilled = distill(encoder, few, tmp_path / "out", progress=die, **LONGER)
            assert 1 <= next(s.step for s in seen if s.stage == last[0]) <= last[1] + 1
        last = ends
    assert same(weights(distilled.folder), weights(undisturbed.folder))
    assert same(weights(distilled.folder / "teacher"), weights(undisturbed.folder / "teacher"))
    assert distilled.plan == undisturbed.plan
    assert distilled.report == undisturbed.report


def test_the_seed_decides_all_of_it(encoder, few, tmp_path, undisturbed):
    distilled = distill(encoder, few, tmp_path / "out", seed=1, **LONGER)
    assert not same(weights(distilled.folder), weights(undisturbed.folder))


def test_other_settings_do_not_go_on_with_a_run(encoder, few, tmp_path):
    def die(now):
        if now.stage == "hidden":
            raise Killed

    with pytest.raises(Killed):
        distill(encoder, few, tmp_path / "out", progress=die, **FAST)
    with pytest.raises(DistillError, match="belongs to a run with other settings"):
        distill(encoder, few, tmp_path / "out", **{**FAST, "temperature": 3.0})


# The file.

TENSORS = {"a": torch.arange(100_000.0), "b": torch.ones(3, dtype=torch.uint8)}


def test_a_checkpoint_holds_tensors_and_a_state_and_is_not_read_where_it_is_damaged(tmp_path):
    write(tmp_path / "x", TENSORS, {"epoch": 3, "best": -0.5})
    tensors, state = read(tmp_path / "x")
    assert same(tensors, TENSORS)
    assert state == {"epoch": 3, "best": -0.5}
    assert read(tmp_path / "nothing") is None
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:1000])
    with pytest.raises(DistillError, match="is damaged"):
        read(tmp_path / "x")


def test_a_checkpoint_survives_a_power_cut(tmp_path, monkeypatch):
    """Its content is on the disk before it has its name, and its name after that: what a budget has spent is in it."""
    done, replace = [], os.replace
    monkeypatch.setattr(checkpoints, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(checkpoints.os, "replace", lambda *names: done.append("replace") or replace(*names))
    write(tmp_path / "x", TENSORS, {"epoch": 3})
    assert done == ["x.part", "replace", tmp_path.name]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """The system refuses to write beyond a limit, as it does on a full disk."""
    write(tmp_path / "x", {"a": torch.zeros(10)}, {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DistillError, match=r"no space left; .* the last checkpoint is complete"):
            write(tmp_path / "x", TENSORS, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    tensors, state = read(tmp_path / "x")
    assert state == {"epoch": 1}
    assert same(tensors, {"a": torch.zeros(10)})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path):
    with locked(tmp_path), pytest.raises(DistillError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
