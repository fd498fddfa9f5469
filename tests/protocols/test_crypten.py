"""N parties on CrypTen's communicator: who owns what, what each of them sees, how products are computed.

That it computes what `clear` does is in test_conformance.py, for two parties and five. `run_many` asserts of every run
that each party's bytes, the dealer's corrections and the rounds are what is declared.
"""

import importlib.util
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from blindformer.models.program.pricing import price
from blindformer.protocols.crypten import versions
from blindformer.protocols.crypten.context import Moved
from blindformer.protocols.crypten.versions import CryptenError, UncheckedVersion, check_versions
from blindformer.protocols.matmul import matmul_limbs
from blindformer.protocols.ring import Ring
from blindformer.protocols.streams import new_seed
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.many import RanMany, declared, run_many
from blindformer.tests.protocols.programs import Case, Data, Draft, check, hidden
from blindformer.tests.protocols.test_beaver_transcripts import alike, even, inputs, related

SIZES = pytest.mark.parametrize("size", [2, 3, 5])


class Limbs(Ring):
    """The products that a CUDA device computes: exact float64 products of limbs, here on the CPU."""

    def matmul(self, x, y):
        return matmul_limbs(x, y, self.bits)

    def linear(self, x, weight, bits=64):
        return matmul_limbs(x, weight, bits)


@SIZES
def test_products_by_limbs_are_exact(size):
    for name in ("one_layer", "one_value_many_readers"):
        case = CASES[name]()
        check(case, run_many(case, size, ring=Limbs()).outputs, size)


def two_owners() -> Case:
    """A text part of one party and an image part of another meet in one linear layer, and as factors of its result."""
    d, data = Draft(), Data(5)
    text, image = d.client(data.ints(4, 6, bits=10)), d.client(data.ints(4, 6, bits=10))
    joined = d("rescale", d("linear", d("concat", text, image, dim=1), d.weight(data.ints(12, 5, bits=8))), bits=6)
    d("mul_private", joined, d.client(data.bits(4, 1)))
    d("mul_private", joined, d.client(data.bits(1, 5)))
    d("mul", text, image)
    return d.case()


@pytest.mark.parametrize("recipient", [0, 1, 2, 3])
def test_data_of_several_owners_and_a_named_recipient(recipient):
    case = two_owners()
    names = sorted(case.client, key=lambda name: int(name.removeprefix("client")))
    owners = dict(zip(names, [1, 2, 3, 0], strict=True))
    check(case, run_many(case, 4, owners=owners, recipient=recipient).outputs, 4)


@SIZES
@pytest.mark.parametrize("recipient", [0, 1])
def test_a_layer_costs_what_is_declared_whoever_gets_it(size, recipient):
    run_many(CASES["one_layer"](), size, recipient=recipient)


@pytest.mark.parametrize("name", ["one_layer", "one_value_many_readers"])
def test_two_parties_pay_what_beaver_declares(name):
    """And the leader a share of zero more for each result, from the dealer."""
    case = CASES[name]()
    costs, rounds = declared(case)
    steps, beaver = [step for cost in costs for step in cost.steps], price(case.program)
    assert rounds == beaver.rounds
    assert [sum(step.sent(rank, 2, 1) for step in steps) for rank in (0, 1)] == [beaver.down, beaver.up]
    assert sum(cost.offline for cost in costs) > beaver.offline_bytes


@pytest.mark.parametrize("size", [2, 3, 7])
def test_an_opening_goes_to_everybody_and_the_rest_to_or_from_one(size):
    sent = lambda moved: sum(moved.sent(rank, size, 1) for rank in range(size))  # noqa: E731
    assert sent(Moved(opened=10)) == 10 * size * (size - 1)
    assert sent(Moved(gathered=10)) == sent(Moved(spread=10, one=1)) == 10 * (size - 1)
    for moved in (Moved(opened=3, gathered=5, spread=7), Moved(gathered=5, spread=7, one=1)):
        assert sent(moved) == sum(moved.received(rank, size, 1) for rank in range(size))


def test_openings_go_to_everybody_and_the_rest_to_one_party():
    """Per element of 8 bytes: two openings; a half of each factor to the leader, who owns the weights; the result."""
    d, data = Draft(), Data(1)
    d("mul", hidden(d, data, 8, 8), hidden(d, data, 8, 8))
    sent = [traffic.sent for traffic in run_many(d.case(len(d.instructions) - 1), 4).traffic]
    opening, halves, result = 2 * 512, 2 * 512, 512
    assert sent[0] == {1: opening + result, 2: opening, 3: opening}
    assert sent[1] == {0: opening + halves, 2: opening, 3: opening}
    assert sent[2] == {0: opening + halves, 1: opening + result, 3: opening}


# --- what a party sees -----------------------------------------------------------------------------------------------
def suspicions(ran: RanMany) -> set[str]:
    uneven = {f"party {rank}" for rank, seen in enumerate(ran.views) if not even(seen)}
    # What comes in and what it makes with the party's own part differ by that part, which is key stream, too.
    return uneven | {f"two at party {rank}" for rank, seen in enumerate(ran.views) if related(alike(seen))}


@SIZES
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_every_party_sees_uniform_numbers(size, kind):
    ran = run_many(inputs(kind), size)
    assert all(sum(opening[0].numel() for opening in seen) > 10_000 for seen in ran.views)
    assert suspicions(ran) == set()


def test_the_same_input_twice_gives_unrelated_transcripts():
    case = inputs("random")
    first, second = run_many(case, 3), run_many(case, 3)
    for mine, again in zip(first.views, second.views, strict=True):
        assert not related(zip(mine, again, strict=True))


def test_the_check_sees_masks_that_come_twice():
    """The same seeds for two runs: what a party sees differs by the inputs alone."""
    seeds, weights = [new_seed() for _ in range(3)], new_seed()
    runs = [run_many(inputs(kind), 3, seeds=seeds, weight_seed=weights) for kind in ("zeros", "random")]
    assert related(zip(runs[0].views[0], runs[1].views[0], strict=True))


def test_the_sum_of_all_but_one_share_tells_nothing_of_a_result():
    """What the recipient gets is a fresh sharing each time, though the result is the same."""
    d, data = Draft(), Data(1)
    d("rescale", hidden(d, data, 64, 64, bits=30), bits=6)
    case = d.case(len(d.instructions) - 1)
    shares = [run_many(case, 3).views[1][-1] for _ in range(2)]
    assert not related([shares])
    assert len(shares[0][0]) == 64 * 64


# --- versions --------------------------------------------------------------------------------------------------------
@pytest.fixture
def installed(monkeypatch):
    known = {"crypten": "0.4.1", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(versions, "installed", lambda package: known[package])
    return known


def test_the_checked_versions_pass_in_silence(installed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_versions()


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ("0.4.0", r"crypten 0.4.0: was not checked .*; install 0.4.1"),
        (None, r"crypten: is not installed; run: pip install"),
    ],
)
def test_another_crypten_is_refused(installed, other, line):
    installed["crypten"] = other
    with pytest.raises(CryptenError, match=line):
        check_versions()


def test_another_torch_is_warned_of(installed):
    installed["torch"] = "2.99.0"
    with pytest.warns(UncheckedVersion, match=r"torch 2.99.0: crypten was checked with torch 2.13 only"):
        check_versions()


# CrypTen's own operations among three processes: our channels, our dealer's tuples, our streams, and nothing left.

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.tests.protocols.crypten_party import take_part  # noqa: E402
from blindformer.tests.shared.processes import alone  # noqa: E402


def free_ports(count):
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_two_sessions_of_plain_crypten_code_follow_one_another():
    """Products, comparisons and truncations (every kind of tuple), twice in one process."""
    ports = free_ports(2)
    with ThreadPoolExecutor(3) as parties:
        list(parties.map(lambda rank: alone(take_part, rank, ports), range(3)))
