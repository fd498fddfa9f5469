"""Without a dealer, by oblivious transfer and encryption: answers are a dealer's, at the declared bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("nacl")
pytest.importorskip("seal")

from blindformer.errors import BlindformerError
from blindformer.models.program.correlations import Correlations
from blindformer.protocols.channel import Channel
from blindformer.protocols.errors import CorrelationError, PeerProtocolError
from blindformer.protocols.homomorphic.lattice import DEGREE, LatticeKey, LatticePublic, random_words
from blindformer.protocols.homomorphic.products import product_cost
from blindformer.protocols.kernels import library
from blindformer.protocols.pair.crossed_products import EncryptedProducts
from blindformer.protocols.pair.declared import SessionCosts, setup_traffic
from blindformer.protocols.pair.engines import set_up
from blindformer.protocols.pair.transfers import Crossed
from blindformer.protocols.ring import Ring
from blindformer.tests.models.conftest import batches, make
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.harness import in_threads
from blindformer.tests.protocols.pair_parties import Start, asked, dealt, fresh_seeds, made
from blindformer.tests.protocols.programs import Case, check
from blindformer.tests.shared.memory import memory_pair

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")

Party = Callable[[Channel], Any]


def start(session: bytes) -> Start:
    return lambda end, leader: set_up(end, leader, session)


def both(server: Party, client: Party) -> tuple[Any, Any]:
    """What both parties' work gives."""
    ends, results = memory_pair("server", "client", PATIENCE), {}
    in_threads([lambda: results.update(server=server(ends[0])), lambda: results.update(client=client(ends[1]))], ends)
    return results["server"], results["client"]


def test_a_models_answers_are_a_dealers_and_cost_what_is_declared():
    compiled = make("bert-labels", "he").compiled
    case, seeds = Case.of(compiled, batches("bert-labels")[0]), fresh_seeds()
    out = made(case, seeds, start(b"1"), times=2)
    assert out.set_up["client"].received == setup_traffic().to_client
    assert out.set_up["client"].sent == setup_traffic().to_server
    answer, expected = asked(case, seeds, out.kept[0]), asked(case, seeds, dealt(case, seeds))
    assert answer.keys() == expected.keys()
    assert all(torch.equal(answer[name], expected[name]) for name in expected)
    declared = SessionCosts()
    costs = [declared.of(Correlations(case.program).pair_walk({})) for _ in range(2)]
    assert [cost.rounds for cost in costs] == out.rounds
    assert ["weights" in cost.traffic for cost in costs] == [True, False]
    meter = out.ends[1].meter.since(out.set_up["client"])
    assert meter.received == sum(cost.total.to_client for cost in costs)
    assert meter.sent == sum(cost.total.to_server for cost in costs)


@pytest.mark.parametrize(
    "name", ["one_value_many_readers", "one_layer", "private_values_used_as_shared", "less-24", "fourier-(20, 6)"]
)
def test_every_value_is_right(name):
    case, seeds = CASES[name](), fresh_seeds()
    check(case, asked(case, seeds, made(case, seeds, start(b"1")).kept[0]))


def uniform(*shape: int) -> torch.Tensor:
    return torch.from_numpy(random_words(torch.Size(shape).numel()).copy().view("int64")).view(shape)


def crossed(kind: str, clients: torch.Tensor, servers: torch.Tensor, width: int, **options) -> tuple[Crossed, Crossed]:
    """The server's and the client's part."""
    shapes = tuple(clients.shape), tuple(servers.shape)
    client = Crossed(None, None, width, kind=kind, mine=clients, theirs=shapes[1], **options)
    names = {"name": client.name, "bits": client.bits}
    return Crossed(None, None, width, kind=kind, mine=servers, theirs=shapes[0], **names), client


def product(job: tuple[Crossed, Crossed]) -> torch.Tensor:
    server, client = job
    return (client.mine * server.mine).sum(1) if client.kind == "product" else Ring().matmul(client.mine, server.mine)


def added(job: tuple[Crossed, Crossed], server: torch.Tensor, client: torch.Tensor) -> torch.Tensor:
    """Both shares together, with what both lack."""
    if job[0].kind != "product":
        return server + client
    assert not bool((server[1] & ~1).any())
    return server[0] + client[0] + server[1] * client[1]


def test_products_of_all_kinds_shapes_and_widths_of_a_round():
    many = DEGREE + 70
    jobs = [
        crossed("product", uniform(1, 2, 3, 5), uniform(2, 3, 5), 3),
        crossed("product", uniform(1, 1, many), uniform(1, many), 8),
        crossed("product", uniform(1, 1, 7), uniform(1, 7), 1),
        crossed("product", uniform(1, 1, 9), uniform(1, 9), 6, name="v"),
        crossed("product", uniform(2, 2, many) >> 36, uniform(2, many) >> 40, 6, bits=53),
        crossed("matrix", uniform(2, 3, 5, 4), uniform(2, 3, 4, 6), 6),
        crossed("matrix", uniform(20, 3, 64), uniform(20, 64, 2), 5),  # several pieces
        crossed("matrix", uniform(2, 3, 5, 4), uniform(1, 3, 4, 6), 8),
        crossed("linear", uniform(2, 70, 4), uniform(4, 3), 8, name="w", chosen=uniform(2, 70, 3)),
        crossed("linear", uniform(4), uniform(4, 3), 7, name="w"),
        crossed("linear", uniform(2, 1, 5, 4), uniform(3, 4, 6), 2, name="heads"),
    ]
    key = LatticeKey()

    def party(end: Channel, place: int) -> list[torch.Tensor]:
        products = EncryptedProducts(end, key if place == 0 else LatticePublic(key.public()))
        return products.cross([job[place] for job in jobs])

    shares = both(lambda end: party(end, 0), lambda end: party(end, 1))
    for job, *two in zip(jobs, *shares, strict=True):
        shift = 64 - 8 * job[0].width
        assert torch.equal(added(job, *two) << shift, product(job) << shift), job[0].kind
        assert job[1].chosen is None or torch.equal(two[1] << shift, job[1].chosen << shift)


def test_weights_travel_once_a_session():
    weights, matrix = uniform(1, 9), uniform(4, 3)
    rounds = [
        [
            crossed("product", uniform(1, 1, 9), weights, 6, name="v"),
            crossed("linear", uniform(2, 4), matrix, 8, name="w"),
        ]
        for _ in range(2)
    ]
    key = LatticeKey()

    def party(end: Channel, place: int) -> list[tuple[list[torch.Tensor], int]]:
        products = EncryptedProducts(end, key if place == 0 else LatticePublic(key.public()))
        return [(products.cross([job[place] for job in jobs]), end.meter.sent) for jobs in rounds]

    server, client = both(lambda end: party(end, 0), lambda end: party(end, 1))
    for jobs, (mine, _), (theirs, _) in zip(rounds, server, client, strict=True):
        for job, *two in zip(jobs, mine, theirs, strict=True):
            shift = 64 - 8 * job[0].width
            assert torch.equal(added(job, *two) << shift, product(job) << shift), job[0].kind
    assert [sent for _, sent in server] == [server[0][1]] * 2


@pytest.mark.parametrize("more", [-1, 1])
def test_a_peer_that_lies_about_sizes_is_one_line(more):
    """At the first byte count that differs from the declared one, before the bytes are read."""
    key = LatticeKey()
    jobs = crossed("product", uniform(1, 1, 3), uniform(1, 3), 8)
    request, reply = product_cost(3, 1)

    def lying_server(end: Channel) -> None:
        end.send(bytes(request + more))

    def lying_client(end: Channel) -> None:
        end.recv(request)
        end.send(bytes(reply + more))

    def honest(place: int) -> Party:
        of_session = key if place == 0 else LatticePublic(key.public())
        return lambda end: EncryptedProducts(end, of_session).cross([jobs[place]])

    for parties in ((lying_server, honest(1)), (honest(0), lying_client)):
        with pytest.raises(PeerProtocolError) as error:
            both(*parties)
        assert "\n" not in str(error.value)
        assert "bytes" in str(error.value)


def test_nothing_more_is_given_after_a_failure():
    server, _ = memory_pair("server", "client", 1)
    products = EncryptedProducts(server, LatticeKey())
    wrong = Crossed(None, None, 8, mine=torch.zeros(3, 4, dtype=torch.int64), theirs=(1, 3, 4))
    with pytest.raises(BlindformerError, match="1 or 2"):
        products.cross([wrong])
    with pytest.raises(CorrelationError, match="failed before"):
        products.cross([])
