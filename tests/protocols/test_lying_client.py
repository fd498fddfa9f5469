"""What who deviates learns of the weights: all of them as a client of topology `dealer`, nothing new as an owner."""

import blindformer as bf
import torch
from blindformer.tests.protocols.harness import run_session
from blindformer.tests.protocols.lying import Copy, LyingClient
from blindformer.tests.protocols.programs import Case
from torch import nn

ROWS = 32


def network(inputs: int = 64, hidden: int = 96, outputs: int = 8) -> bf.Compiled:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return bf.compile(model, [{"input": torch.randn(ROWS, inputs)} for _ in range(4)])


def test_a_client_that_shifts_its_messages_reads_every_weight():
    compiled = network()
    found, asked = {}, []

    def play(client: LyingClient) -> None:
        copy = Copy(compiled.program, lambda sources, lies: next(iter(client.ask(sources, lies).values())))
        found.update(copy.run())
        asked.append(client.asked)

    run_session(Case(compiled.program, {}, compiled.weights, compiled.constants), party=LyingClient, play=play)
    assert sum(weight.numel() for weight in found.values()) == 6912
    for name, weight in found.items():
        assert torch.equal(weight, compiled.weights[name]), (weight - compiled.weights[name]).abs().max()
    assert asked == [29]
