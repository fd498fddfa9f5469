"""What each party of a delegated session receives is uniform, whatever the text is, and each time anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blindformer.parties.session import delegated_client, delegation
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.arithmetic import PassMasks, unpack_ring
from blindformer.tests.parties.session.delegated_site import WIDE, DelegatedSite
from blindformer.tests.shared.memory import is_message
from blindformer.tests.uniformity import ALARM, difference, log_p_values, sample

PASSES, CALLS, ROWS = 12, 3, 8
DIRECTIONS = [("server", "client"), ("server", "dealer"), ("client", "server")]
TEXTS: dict[str, Callable[[], torch.Tensor]] = {
    "zeros": lambda: torch.zeros(1, ROWS, WIDE),
    "one text again and again": lambda: torch.linspace(-1, 1, 8 * WIDE).view(1, ROWS, WIDE),
    "numbers at the edge": lambda: torch.full((1, ROWS, WIDE), 3e19),
}


def least(values: list[torch.Tensor], ring: int) -> tuple[float, int]:
    """The least logarithm of a p-value of these numbers, and of their differences from the pass before; and how many
    tests there were."""
    samples = [sample(value, ring // 8) for value in values]
    pairs = [difference(samples[at], samples[at - CALLS]) for at in range(CALLS, len(samples))]
    logs = log_p_values(samples + pairs)
    return min(logs), len(logs)


def numbers(frame: bytes, ring: int) -> torch.Tensor:
    """All of a frame, as integers of the ring."""
    return unpack_ring(bytearray(frame), (8 * len(frame) // ring,), ring).long()


def one_by_one(blocks: list[torch.Tensor], sizes: list[int]) -> list[torch.Tensor]:
    """The corrections of blocks of passes, pass by pass."""
    calls = [torch.cat(blocks[call::CALLS]).split(size) for call, size in enumerate(sizes)]
    return [part for one_pass in zip(*calls, strict=True) for part in one_pass]


def watched(text: Callable[[], torch.Tensor], plan: str = "faithful") -> DelegatedSite:
    site = DelegatedSite(plan=plan)
    client = site.client()
    client.prepare = lambda: None
    for _ in range(PASSES):
        site.runner.run(client, site.module, text())
    client.close()
    assert site.ended() == []
    site.close()
    return site


@pytest.mark.parametrize("plan", RINGS)
@pytest.mark.parametrize("name", TEXTS)
def test_what_crosses_the_wire_is_uniform(name, plan):
    site, ring = watched(TEXTS[name], plan), RINGS[plan]
    for direction in DIRECTIONS:
        values = [numbers(frame, ring) for frame in site.frames(*direction)]
        if direction == ("server", "dealer"):
            values = one_by_one(values, [ROWS * group.outputs for group in site.groups])
            assert len(values) > PASSES * CALLS
        low, tests = least(values, ring)
        assert low > math.log(ALARM / tests), direction


def test_a_dealer_gets_no_frame_and_no_text():
    """Only seeds, and sequences that follow from shapes: the same ones for each text."""
    frames = []
    for text in TEXTS.values():
        site = watched(text)
        assert site.frames("dealer", "server") == site.frames("dealer", "client") == []
        frames.append(site.received["dealer", "server"])
        (seed,) = site.received["dealer", "client"]
        assert len(seed) < 100
    assert frames[0] == frames[1] == frames[2]


def test_the_messages_to_a_server_are_the_same_for_each_text():
    """All but uniform numbers: and these have the same lengths."""
    seen = []
    for text in TEXTS.values():
        site = watched(text)
        payloads = site.received["server", "client"]
        seen.append([payload if is_message(payload) else len(payload) for payload in payloads])
    assert seen[0] == seen[1] == seen[2]


class OnePassForAll(PassMasks):
    def __init__(self, key: bytes, artifact: str, server: str, sequence: Any) -> None:
        super().__init__(bytes(32), artifact, server, sequence)


class Narrow(PassMasks):
    def next(self, rows: int, inputs: int, outputs: int) -> Any:
        r, s = super().next(rows, inputs, outputs)
        return r >> 2, s


class RowBare(PassMasks):
    def next(self, rows: int, inputs: int, outputs: int) -> Any:
        r, s = super().next(rows, inputs, outputs)
        r[3] = 0
        return r, s


class Unmasked(PassMasks):
    def next(self, rows: int, inputs: int, outputs: int) -> Any:
        r, s = super().next(rows, inputs, outputs)
        return r, torch.zeros_like(s)


@pytest.mark.parametrize(
    ("flawed", "direction"),
    [(OnePassForAll, 0), (Narrow, 0), (RowBare, 0), (Unmasked, 2)],
    ids=["one mask for all passes", "30 bits of 32", "a row without mask", "an answer without mask"],
)
def test_a_flaw_in_the_masks_would_be_seen(monkeypatch, flawed, direction):
    """The answers stay right: nothing else tells."""
    monkeypatch.setattr(delegated_client, "PassMasks", flawed)
    monkeypatch.setattr(delegation, "PassMasks", flawed)
    text = TEXTS["zeros" if flawed is RowBare else "one text again and again"]
    low, tests = least([numbers(frame, 32) for frame in watched(text).frames(*DIRECTIONS[direction])], 32)
    assert low < math.log(ALARM / tests)
