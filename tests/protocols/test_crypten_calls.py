"""Single calls on CrypTen's shares: exact among any number of parties, whoever owns the weight, and uniform to see."""

import threading

import pytest
import torch
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.crypten import calls
from blindformer.protocols.crypten.context import NPartyOnline
from blindformer.protocols.crypten.source import LeaderSource, NPartyDealer, PartySource
from blindformer.protocols.crypten.tuples import Request
from blindformer.protocols.crypten.wire import over_communicator
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import ALONE, run_rounds
from blindformer.protocols.streams import Stream, derive, new_seed
from blindformer.tests.protocols.harness import in_threads
from blindformer.tests.protocols.many import communicators
from blindformer.tests.protocols.test_beaver_transcripts import even
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.uniformity import sample

WEIGHT, CALL = 3, 7  # numbers of requests


def run(request, x, size, weight=None):
    """All parties' shares of the result, and what each of them received."""
    seeds = [new_seed() for _ in range(size)]
    x_shares = [Stream(new_seed(), "x").integers("x", tuple(x.shape)) for _ in range(size - 1)]
    x_shares.append(x - sum(x_shares))
    shares, seen = [None] * size, [[] for _ in range(size)]

    def stream(rank, number):
        return Stream(derive(seeds[rank], f"tuple {number}"), "masks")

    def party(communicator):
        rank, source, masked = communicator.rank, PartySource(stream(communicator.rank, CALL), communicator.rank), None
        if weight is not None and rank != request.owner:
            mask = calls.weight_mask(PartySource(stream(request.owner, WEIGHT), request.owner), request, WEIGHT)
            masked = weight - mask
        if rank == 0:
            ours, theirs = memory_pair("dealer", "party 0", 20)
            corrections = Corrections(ours, calls.layout(request))
            every = lambda number: NPartyDealer([stream(k, number) for k in range(size)], corrections)  # noqa: E731
            threading.Thread(target=calls.answer, args=(request, CALL, every), daemon=True).start()
            source = LeaderSource(stream(0, CALL), Corrections(theirs, calls.layout(request)))
        online = NPartyOnline(rank, 0, calls.prepare_call(source, request, masked), Ring())
        wire = over_communicator(communicator)

        def tapped(swaps):
            came = wire(swaps)
            seen[rank].extend(
                (tensor.clone(), swap.width) for tensor, swap in zip(came, swaps, strict=True) if tensor is not None
            )
            return came

        mine = weight if rank == request.owner else None
        results = []
        start = lambda _: calls.run_call(online, request, x_shares[rank], mine)  # noqa: E731
        run_rounds(ALONE, start, lambda _, result: results.append(result), tapped)
        shares[rank] = results[0]

    in_threads([lambda c=c: party(c) for c in communicators(size)])
    return shares, seen


def near(size):
    """From the floor: it or the ceiling; among more than two parties, less than half a unit for each."""
    return set(range(-((size - 1) // 2), (size - 1) // 2 + 2))


def values(*shape, bits=20):
    return torch.randint(-(1 << bits), 1 << bits, shape, generator=torch.Generator().manual_seed(bits))


@pytest.mark.parametrize(("size", "owner"), [(2, 0), (2, 1), (3, 0), (3, 2), (5, 1)])
def test_a_weight_stationary_linear_is_exact(size, owner):
    x, weight = values(2, 40, 16), values(16, 24, bits=18)
    request = Request(kind="linear", sizes=((2, 40, 16), (16, 24)), bits=16, owner=owner, weight=WEIGHT)
    shares, seen = run(request, x, size, weight)
    error = sum(shares) - (x @ weight >> 16)
    assert set(error.unique().tolist()) <= near(size)
    received = [sample(tensor, width) for party in seen for tensor, width in party]
    assert even(received + [sample(share, 8) for share in shares]), "fresh shares, too"


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("bits", [1, 16, 40])
def test_a_truncation_is_exact_up_to_62_bits(size, bits):
    x = values(4096, bits=61)
    shares, _ = run(Request(kind="rescale", sizes=((4096,),), bits=bits), x, size)
    assert set((sum(shares) - (x >> bits)).unique().tolist()) <= near(size)


def test_the_dealers_bytes_do_not_grow_with_the_weight():
    """A call's corrections have the result's size: the weight was masked ahead."""
    sizes = [calls.layout(Request(kind="linear", sizes=((8, k), (k, 4)))) for k in (16, 1024)]
    assert sizes[0] == sizes[1]
