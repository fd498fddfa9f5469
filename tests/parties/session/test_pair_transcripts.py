"""What each party receives without a dealer: uniform numbers, in frames whose sizes and order follow from shapes."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

pytest.importorskip("nacl")
pytest.importorskip("seal")
from blindformer.protocols.homomorphic.lattice import ALL_PRIMES, CIPHERTEXT_BYTES, DEGREE, SEED_BYTES
from blindformer.protocols.homomorphic.linear import linear_cost
from blindformer.protocols.homomorphic.products import product_cost
from blindformer.protocols.kernels import library
from blindformer.protocols.oblivious.silent import HASH_BYTES, MESSAGE_BYTES, SUM_BYTES
from blindformer.protocols.streams import new_seed
from blindformer.tests.parties.session.site import Site
from blindformer.tests.protocols.programs import Case, Data, Draft
from blindformer.tests.shared.memory import is_message
from blindformer.tests.uniformity import ALARM, Sample, log_p_values

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")

RECEIVERS = {"server": "client", "client": "server"}
EVEN_BYTES = 6  # of a number that is encrypted, which stand before the other bits
QUERIES = 3
TRANSFERS = {MESSAGE_BYTES, SUM_BYTES, HASH_BYTES}  # of a batch, when none are left


def of_kind(kind: str) -> Case:
    """Layers, products, a rescale and a comparison, of one text and one set of weights."""
    data, d, rows = Data(3), Draft(), 8
    if kind == "zeros":
        x, weights, scale = (torch.zeros(shape, dtype=torch.int64) for shape in ((rows, 16), (16, 16), (16,)))
    else:
        x, weights, scale = data.ints(rows, 16, bits=8), data.ints(16, 16, bits=8), data.ints(16, bits=4)
    y = d("linear", d.client(x), d.weight(weights))
    y = d("rescale", d("mul_private", y, d.weight(scale)), bits=6, ring=64)
    scores = d("matmul", y, d("permute", y, dims=[1, 0]))
    return d.case(d("mul", d("less", y, threshold=40, bits=40), d("mul", y, y)), scores)


class Heard:
    """What a party received in a session, by query: messages, and the frames after each."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.parts: list[tuple[str, list[bytes]]] = [("", [])]
        for payload in payloads:
            if is_message(payload):
                self.parts.append((next(iter(json.loads(payload))), []))
            else:
                self.parts[-1][1].append(payload)

    def after(self, name: str) -> list[list[bytes]]:
        """The frames after each message whose first name is this one."""
        return [frames for first, frames in self.parts if first == name]

    def sizes(self) -> list[tuple[str, list[int]]]:
        return [(name, [len(frame) for frame in frames]) for name, frames in self.parts]


# After which message the frames of correlations come, and those of the online phase.
MAKING = {"server": "query", "client": "make"}
ONLINE = {"server": "go", "client": "ready"}


def session(kind: str, dealt: bool = False) -> dict[str, Heard]:
    """What server and client receive from each other, in some queries."""
    site = Site(of_kind(kind), secret=new_seed(), dealt=dealt)
    with site.client() as party:
        for _ in range(QUERIES):
            party.query(site.case.client)
    site.end()
    return {receiver: Heard(site.received[receiver, sender]) for receiver, sender in RECEIVERS.items()}


@pytest.fixture(scope="module")
def heard() -> dict[str, dict[str, Heard]]:
    return {kind: session(kind) for kind in ("zeros", "random")}


def even(frames: list[bytes]) -> bool:
    arrays: list[Sample] = [[torch.frombuffer(bytearray(frame), dtype=torch.uint8)] for frame in frames]
    logs = log_p_values(arrays)
    return min(logs) > math.log(ALARM / len(logs))


def is_request(frame: bytes) -> bool:
    """Ciphertexts of the server's."""
    return len(frame) % CIPHERTEXT_BYTES == 0


def later(heard: Heard, receiver: str) -> list[list[bytes]]:
    """What makes the correlations of each query after the first, which sends the weights, without transfers."""
    queries = heard.after(MAKING[receiver])[1:]
    return [[frame for frame in frames if len(frame) not in TRANSFERS] for frames in queries]


def uniform_bytes(frame: bytes) -> bytes:
    """Of ciphertexts, without the bits of numbers above 48: primes have 50 bits and more."""
    if not is_request(frame):
        return frame
    ciphertexts = torch.frombuffer(bytearray(frame), dtype=torch.uint8).view(-1, CIPHERTEXT_BYTES)
    return ciphertexts[:, SEED_BYTES : SEED_BYTES + EVEN_BYTES * ALL_PRIMES * DEGREE].numpy().tobytes()


@pytest.mark.parametrize("kind", ["zeros", "random"])
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_what_makes_correlations_is_uniform(heard, receiver, kind):
    """Transfers, shares, and what is encrypted; all frames of a query's making together, and each by itself."""
    queries = heard[kind][receiver].after(MAKING[receiver])
    assert len(queries) == QUERIES
    assert any(map(is_request, queries[0])) == (receiver == "client")
    for frames in queries:
        frames = [uniform_bytes(frame) for frame in frames]
        assert even(frames)
        assert even([b"".join(frames)])


@pytest.mark.parametrize("kind", ["zeros", "random"])
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_no_frame_comes_twice_and_differences_are_uniform(heard, receiver, kind):
    """Of the same text and the same weights, query after query: no mask and no transfer is used again."""
    queries = heard[kind][receiver].after(MAKING[receiver])
    long = [frame for frames in queries for frame in frames if len(frame) >= 16]
    assert len(set(long)) == len(long)
    for before, after in pairwise(later(heard[kind][receiver], receiver)):
        pairs = zip(map(uniform_bytes, before), map(uniform_bytes, after), strict=True)
        assert even([bytes(x ^ y for x, y in zip(*pair, strict=True)) for pair in pairs])


def test_sizes_depend_on_shapes_alone(heard):
    """Neither on the text nor on the weights; nor on the query's number, but for weights and transfers."""
    for receiver in RECEIVERS:
        sizes = [heard[kind][receiver].sizes() for kind in heard]
        assert sizes[0] == sizes[1]
        second, third = later(heard["zeros"][receiver], receiver)
        assert list(map(len, second)) == list(map(len, third))


def test_the_online_phase_is_that_with_a_dealer(heard):
    dealt = session("random", dealt=True)
    for receiver, name in ONLINE.items():
        with_dealer, without = (
            [[len(frame) for frame in frames] for frames in one[receiver].after(name)]
            for one in (dealt, heard["random"])
        )
        assert with_dealer == without
        assert len(without) == QUERIES
        assert all(without)


def test_these_are_all_kinds_of_frames(heard):
    """So that no kind is left out above."""
    of_client, of_server = (
        {len(frame) for frame in heard["random"][receiver].after(MAKING[receiver])[0]} for receiver in RECEIVERS
    )
    products = [product_cost(1, terms, bits) for terms in (1, 2) for bits in (64, 80, 96, 112, 128)]
    for way, frames in enumerate((of_server, of_client)):
        assert linear_cost(1, 8, 16, 16)[way] in frames
        assert {cost[way] for cost in products} & frames
    assert EVEN_BYTES * ALL_PRIMES * DEGREE < CIPHERTEXT_BYTES
