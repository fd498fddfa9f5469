"""Kernels for GPUs give the bits that their torch functions give, are what a session on a GPU computes with, and are
machine code for GPUs: all of it without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from blindformer.protocols.kernels import library
from blindformer.protocols.kernels.library import kernels
from blindformer.tests.gpu import GPU, interpreted, pretended
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Draft, check
from blindformer.tests.protocols.test_kernels import DRAWN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the extra `gpu` is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("this machine has a GPU, on which tests/protocols/test_devices.py runs them", allow_module_level=True)

FUSED = [name for name in DRAWN if library.on_gpu(name)]


def test_these_are_fused() -> None:
    assert FUSED == ["to_planes", "from_plane", "compare_blocks", "join"]


@pytest.mark.parametrize("name", FUSED)
@given(data=st.data(), n=st.sampled_from([1, 63, 64, 65, 300]))
@settings(max_examples=8)
def test_a_kernel_gives_the_bits_of_its_torch_function(name: str, data: st.DataObject, n: int) -> None:
    torch.manual_seed(n)
    args, fused = DRAWN[name](data.draw, n), library.on_gpu(name)
    assert fused is not None
    results = fused(*args), kernels[name].reference(*args)
    for mine, wanted in zip(*((x,) if isinstance(x, Tensor) else x for x in results), strict=True):
        assert torch.equal(mine, wanted)


def test_a_comparison_on_a_gpu_is_made_of_them() -> None:
    called = Counter[str]()

    def counted(name: str):
        called[name] += 1
        return interpreted(name)

    d = Draft()
    x = d.client(torch.tensor([5, -3, 1 << 18, -(1 << 18)]))
    d("less", x, threshold=3, bits=24)
    with pretended(fused=counted):
        case = d.case()
        check(case, run_beaver(case, devices=dict.fromkeys(["server", "dealer", "client"], GPU)).outputs, 2)
    assert {name for name in called if library.on_gpu(name)} == set(FUSED)


COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from blindformer.protocols.kernels import fused
SIZES = {"DROP": 3, "BITS": 9, "WORDS": 8, "SPAN": 256, "BLOCK": 4, "MOST": 5, "N": 5}
WHOLE = {"count": "i32", "words": "i32", "number": "i64", "public": "i32"}
for name in ("_to_planes", "_from_plane", "_compare_blocks", "_join"):
    kernel = getattr(fused, name)
    kinds = {x: "constexpr" if x in SIZES else WHOLE.get(x, "*i64") for x in kernel.arg_names}
    given = {x: SIZES[x] for x in kernel.arg_names if x in SIZES}
    for capability in (89, 90):
        code = compile(ASTSource(kernel, signature=kinds, constexprs=given), target=GPUTarget("cuda", capability, 32))
        assert code.asm["cubin"], name
        print(name, capability)
"""


def test_they_are_compiled_for_an_rtx_4090_and_an_h100() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * len(FUSED)
