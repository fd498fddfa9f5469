"""The program for an owner who takes no part: the same computation, its data in shares from outside.

What holds of it for every configuration is in models/test_configurations.py.
"""

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.models.program.two_server import (
    answer_layout,
    for_two_servers,
    owner_traffic,
)
from blindformer.protocols.ring import sign_extend
from blindformer.protocols.wire import wire_bytes
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import Case, handed_over


def both(tiny, name, plan="faithful", embedding="client") -> tuple[Program, Program]:
    compiled = tiny(name, plan, embedding).compiled.program
    return compiled, for_two_servers(compiled)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_every_party_derives_the_same_program(tiny, name):
    compiled, moved = both(tiny, name)
    again = for_two_servers(Program.from_json(compiled.to_json()))
    assert again.hash() == moved.hash() != compiled.hash()
    assert Program.from_json(moved.to_json()) == moved
    assert for_two_servers(moved) == moved


@pytest.mark.parametrize(
    ("name", "plan", "embedding"),
    [
        ("bert", "fast", "client"),
        ("bert", "faithful", "private"),
        ("gpt2", "fast", "client"),
        ("vit", "fast", "client"),
        ("vit-labels", "faithful", "client"),
        ("mpnet", "faithful", "client"),
    ],
)
def test_a_private_run_is_as_close_as_a_client_s_and_reveals_such_integers(tiny, name, plan, embedding):
    """In every protocol. Roundings are random, one unit at each rescale: no seat makes them larger."""
    item = tiny(name, plan, embedding)
    case, outputs = Case.of(item.compiled, item.batches[1]), item.compiled.program.outputs
    scales = {name: item.compiled.program.instructions[number].scale for name, number in outputs.items()}
    exact = case.clear()
    for results in (run_beaver(case).outputs, run_beaver(handed_over(case)).outputs, run_many(case, 2).outputs):
        for output, value in results.items():
            assert torch.equal(value, sign_extend(value, 24))
            assert float((value - exact[output]).abs().max()) < 2e-3 * 2.0 ** scales[output]


@pytest.mark.parametrize(
    ("name", "plan"), [("bert", "fast"), ("bert", "faithful"), ("gpt2", "fast"), ("mpnet", "faithful")]
)
def test_the_other_seat_is_hardly_dearer(tiny, name, plan):
    """What the client knew is opened like the rest: some percent of bytes (in these tiny models the masked answers,
    which only go up, weigh more than the answers, which go to the owner), and no round more."""
    before, after = (price(program) for program in both(tiny, name, plan))
    assert after.rounds <= before.rounds
    assert after.online_bytes < 1.15 * before.online_bytes
    assert after.offline_bytes < 1.05 * before.offline_bytes
    assert after.setup_bytes == before.setup_bytes


def test_the_owner_sends_its_shares_and_a_seed_and_receives_two_answers(tiny):
    compiled, moved = both(tiny, "bert", "fast")
    traffic = owner_traffic(moved)
    sources = [x for x in compiled.instructions if x.op == "client"]
    assert traffic.to_server == sum(wire_bytes(x.width) * torch.Size(x.shape).numel() for x in sources)
    assert traffic.to_helper == 32
    results = [compiled.instructions[number] for number in compiled.outputs.values()]
    assert traffic.from_each == sum(wire_bytes(x.width) * torch.Size(x.shape).numel() for x in results)
    assert traffic.total == traffic.to_server + 32 + 2 * traffic.from_each
    assert list(answer_layout(moved)) == list(moved.outputs)
    assert owner_traffic(compiled).total == 32
