"""Parties on a GPU give the values that parties on a processor give, for the same price, each made of its arguments."""

import pytest
import torch
from blindformer.protocols import streams
from blindformer.protocols.base import find
from blindformer.protocols.devices import CPU, DeviceError, check_room, find_device
from blindformer.protocols.streams import Stream
from blindformer.tests.gpu import GPU, MixedDevices, on_a_gpu, pretended
from blindformer.tests.protocols.cases import CASES, ONE_EACH
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import case_of, check

SOME, ALL = dict.fromkeys(["server", "dealer"], GPU), dict.fromkeys(["server", "dealer", "client"], GPU)


def beaver(devices):
    return lambda case: check(case, run_beaver(case, devices=devices).outputs, 2)


def three(case):
    if not case.program.needs() - find("crypten").supported_operations:
        check(case, run_many(case, 3, device=GPU).outputs, 3)


RUNS = {"two parties, the client on a processor": beaver(SOME), "two parties": beaver(ALL), "three parties": three}


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_value_follows_from_its_arguments(name):
    with pretended():
        RUNS["two parties"](case_of(name, away=True))
        RUNS["three parties"](case_of(name, away=False))


@pytest.mark.parametrize("name", ["one_layer", "one_value_many_readers", "private_embedding", "less-24"])
def test_they_do_where_the_client_computes_on_a_processor(name):
    with pretended():
        RUNS["two parties, the client on a processor"](case_of(name, away=False))


@on_a_gpu
def test_on_a_gpu_they_do_too():
    for name in CASES:
        for run in RUNS.values():
            run(case_of(name, False))


def test_several_threads_draw_the_masks_that_one_draws(monkeypatch):
    """In pieces, the last of which is no whole block."""
    monkeypatch.setattr(streams, "_PIECE", 1 << 10)
    for size in (1 << 8, 1 << 10, 1 << 10 | 1, 9999):
        here, there = (Stream(bytes(32), "masks", device) for device in (CPU, GPU))
        with pretended():
            drawn = there.integers("r", (size,), 3)
            assert torch.equal(drawn.cpu(), here.integers("r", (size,), 3))


def test_what_torch_would_refuse_on_a_gpu_is_refused_without_one():
    with pretended() as gpu:
        there = torch.zeros(3, dtype=torch.int64, device=GPU)
        for mixed in (lambda: there + torch.ones(3), lambda: torch.stack([torch.ones(3), there]), there.numpy):
            with pytest.raises(MixedDevices):
                mixed()
        assert (there + 1).cpu().tolist() == [1, 1, 1]
        assert gpu.bytes == {"down": 24}
        assert bool((there == 0).all())
        assert gpu.bytes == {"down": 24, "waits": 1}


@pytest.mark.parametrize(
    ("name", "count", "line"),
    [
        ("gpu", 2, "device gpu: is none; give cpu, cuda, or one by its number, such as cuda:1"),
        ("cuda:-1", 2, "device cuda:-1: is none; give cpu, cuda, or one by its number, such as cuda:1"),
        ("cuda", 0, rf"device cuda: torch is {torch.__version__}, .*; leave --device out"),
        ("cuda:1", 1, "device cuda:1: this machine has cuda:0"),
        ("cuda:7", 4, "device cuda:7: this machine has cuda:0 to cuda:3"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_a_line(name, count, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=f"^{line.replace('+', '.')}$"):
        find_device(name)


def test_what_does_not_fit_is_refused_with_figures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**8, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 10**8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 10**8)
    check_room(1e12, CPU, "weights")
    check_room(9e8, GPU, "weights")
    with pytest.raises(DeviceError, match=r"^device cuda:0: weights take 1.5 GB, 1 GB are free; use another"):
        check_room(1.5e9, GPU, "weights")
