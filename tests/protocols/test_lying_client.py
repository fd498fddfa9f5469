"""What those who deviate learn: as a client of topology `dealer` all weights, unless it is audited; as an owner or a
helper nothing new."""

import blindformer as bf
import pytest
import torch
from blindformer.models.compile import decode_outputs
from blindformer.models.program.two_server import for_audits
from blindformer.protocols.errors import PeerDeviated, PeerRefused
from blindformer.tests.models.conftest import clear
from blindformer.tests.parties.session.site import Site
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.lying import Copy, LyingAuditedClient, LyingClient, LyingOwner, queries_to_copy
from blindformer.tests.protocols.programs import Case, Data, handed_over
from blindformer.tests.protocols.test_beaver_transcripts import inputs, suspicions
from torch import nn

ROWS = 32


@pytest.fixture(scope="module")
def compiled() -> bf.Compiled:
    """Of 64 inputs, 96 hidden units and 8 outputs, for 32 examples a query: 6,912 weights of 16 bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
        return bf.compile(model, [{"input": torch.randn(ROWS, 64)} for _ in range(4)])


def test_a_client_that_shifts_its_messages_reads_every_weight(compiled):
    """Three queries for the last layer, one for what answers are without an input, 48 for 64 weights of each of 96
    units: 256 a query, or what is left of as many. Answers of 24 bits cannot tell it in fewer than 18."""
    site = Site(Case(compiled.program, {}, compiled.weights, compiled.constants))
    with site.client(kind=LyingClient) as client:
        copy = Copy(compiled.program, lambda sources, lies: next(iter(client.ask(sources, lies).values())))
        weights = copy.run()
    site.end()
    assert sum(weight.numel() for weight in weights.values()) == 64 * 96 + 96 * 8 == 6912
    assert all(torch.equal(weight, compiled.weights[name]) for name, weight in weights.items())
    assert client.asked == 52
    assert queries_to_copy(compiled.program, compiled.weights) == 18


@pytest.mark.parametrize("draws", [[True], [False, False, True]], ids=["at once", "after two answers"])
def test_audits_end_the_attack_before_a_weight_is_known(compiled, draws):
    """The same attack on a server that audits: it ends in the first run that is an audit. The first answers tell what
    answers are without an input, and of no weight more than they tell by themselves."""
    audited = Case(for_audits(compiled.program, 0.25), {}, compiled.weights, compiled.constants)
    site, drawn = Site(audited), iter(draws)
    site.draw = lambda rate: next(drawn)
    with site.client(kind=LyingAuditedClient) as client:
        copy = Copy(compiled.program, lambda sources, lies: next(iter(client.ask(sources, lies).values())))
        with pytest.raises(PeerRefused, match="as an audit shows"):
            copy.run()
    site.join()
    assert [type(error) for party, error in site.failures if party == "server"] == [PeerDeviated]
    assert client.asked == len(draws) - 1
    assert not any(copy.first.flatten().tolist())


def test_an_owner_that_shifts_its_shares_only_asks_about_another_input(compiled):
    """The same network in topology `helper`: a lie gives what an honest owner would get for a shifted input."""
    generator = torch.Generator().manual_seed(1)
    x, shift = (torch.randn(ROWS, 64, generator=generator) for _ in range(2))
    site = Site(handed_over(Case(compiled.program, {}, compiled.weights, compiled.constants)))
    with site.owner(kind=LyingOwner) as owner:
        owner.lies = compiled.encode_inputs({"input": shift})
        answer = owner.query(compiled.encode_inputs({"input": x}))
    (got,) = decode_outputs(site.case.program, answer.outputs).values()
    (wanted,) = clear(compiled, {"input": x + shift}).values()
    torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("owner", ["client", "away"])
def test_what_a_liar_receives_before_an_answer_is_uniform(owner):
    """A client, and a helper, which gets no answer: whatever they add to their shares, all they open is masked afresh.
    So a client learns of the weights by answers alone, and a helper nothing."""
    case, data = inputs("random", owner), Data(9)
    shared = ("linear", "mul_private", "rescale", "mul", "add", "sub", "polynomial", "less", "matmul")
    lies = {
        number: data.ints(*item.shape, bits=60)
        for number, item in enumerate(case.program.instructions)
        if item.op in shared
    }
    honest, lying = run_beaver(case), run_beaver(case, lies=lies)
    assert lying.outputs.keys() == honest.outputs.keys()
    assert not any(torch.equal(lying.outputs[name], honest.outputs[name]) for name in honest.outputs)
    assert suspicions(lying) == set()
