"""Results are divided by a power of two before they are revealed, and who gets them sees nothing below that."""

import pytest
import torch
from blindformer.protocols.ring import logical_shift
from blindformer.protocols.streams import Stream
from blindformer.protocols.wire import unpack, wire_bytes
from blindformer.tests.protocols.harness import Seeds, run_beaver
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import Case, Data, Draft, handed_over
from blindformer.tests.protocols.test_beaver_transcripts import even, suspicions

BITS = {40: 24, 64: 38, 62: 7}  # of rings, the bits dropped: whole bytes are left, and not


def divided(ring: int, x: torch.Tensor | None = None, to: str = "client") -> Case:
    """x, as the product that a model's output is, revealed over 2^bits twice: as it is, and its negative."""
    d, bits = Draft(), BITS[ring]
    x = Data(7).ints(64, 32, bits=ring - 2) if x is None else x
    value = d("mul_private", d.client(x), d.weight(torch.ones_like(x)))
    for source in (value, d("neg", value)):
        d("reveal", source, width=ring - bits, to=to, bits=bits, ring=ring)
    program = d.case(value).program
    last = len(program.instructions) - 1
    return Case(
        program.model_copy(
            update={"instructions": program.instructions[:last], "outputs": {"x": last - 2, "-x": last - 1}}
        ),
        d.tensors["client"],
        d.tensors["weight"],
        {},
    )


def values(ring: int) -> torch.Tensor:
    """Edges of the ring's range and of the units, and many in between: [2, n]."""
    bits, edge = BITS[ring], 1 << (ring - 1)
    unit = 1 << bits
    near = [0, 1, unit - 1, unit, unit + 1, unit // 2, edge - unit - 1, edge // 2, edge // 3]
    return torch.cat([torch.tensor([*near, *(-n for n in near)]), Data(3).ints(2030, bits=ring - 2)]).view(2, -1)


RUNS = {
    "clear": Case.clear,
    "beaver": lambda case: run_beaver(case).outputs,
    "beaver, an owner away": lambda case: run_beaver(handed_over(case)).outputs,
    "crypten, 2": lambda case: run_many(case, 2).outputs,
    "crypten, 3, to the first": lambda case: run_many(case, 3, recipient=0).outputs,
    "crypten, 3, an owner away": lambda case: run_many(handed_over(case), 3).outputs,
}


@pytest.mark.parametrize("ring", BITS)
@pytest.mark.parametrize("protocol", RUNS)
def test_an_answer_is_the_floor_or_the_ceiling(protocol, ring):
    x, bits = values(ring), BITS[ring]
    got = RUNS[protocol](divided(ring, x))
    for z, y in ((x, got["x"]), (-x, got["-x"])):
        floor = z >> bits
        assert bool(((y == floor) | (y == floor + (z % (1 << bits) != 0))).all())


def test_answers_are_right_on_average():
    x = torch.full((40000,), (5 << 24) + (1 << 22))
    got = run_beaver(divided(40, x)).outputs["x"]
    assert set(got.unique().tolist()) == {5, 6}
    assert abs(float(got.double().mean()) - 5.25) < 0.015  # seven standard deviations


@pytest.mark.parametrize("ring", BITS)
def test_all_that_a_client_receives_follows_from_the_answer_and_its_own_key_stream(ring):
    """So it learns the answer alone: given that, it could draw the message itself. What it sends is uniform."""
    seeds, case, width = Seeds(), divided(ring), ring - BITS[ring]
    ran = run_beaver(case, seeds)
    reveals = [number for number, item in enumerate(case.program.instructions) if item.op == "reveal"]
    mine = Stream(seeds.client, "query 0")
    low = [mine.integers(f"{number}/low", (64, 32), wire_bytes(width)) for number in reveals]
    (frame,) = ran.received["client"]
    size = len(frame) // len(reveals)
    came = [unpack(bytearray(frame), at, (64, 32), wire_bytes(width)) for at in range(0, len(frame), size)]
    for message, key, answer in zip(came, low, ran.outputs.values(), strict=True):
        assert torch.equal(logical_shift(message, 0, 8 * wire_bytes(width)), logical_shift(answer - key, 0, width))
    assert ("client", "sum") not in ran.openings
    assert width % 8 or suspicions(ran) == set()


@pytest.mark.parametrize("broken", ["", "/r", "/low"])
def test_what_the_server_opens_is_uniform_and_an_owner_s_shares_are_fresh(monkeypatch, broken):
    """And is not, where a mask is short."""
    honest = Stream.integers

    def integers(self, label, shape, *rest):
        drawn = honest(self, label, shape, *rest)
        return drawn & 0xFFF if broken and label.endswith(broken) else drawn

    monkeypatch.setattr(Stream, "integers", integers)
    ran = run_beaver(handed_over(divided(40, torch.zeros(64, 32, dtype=torch.int64))))
    _, *opened = ran.openings["server", "half"]  # of x, and of the two answers
    given = [opening for (role, _), arrays in ran.openings.items() if role == "owner" for opening in arrays]
    assert (len(opened), len(given)) == (2, 4)
    assert {name: even(seen) for name, seen in (("/r", opened), ("/low", given))} == {
        name: name != broken for name in ("/r", "/low")
    }
