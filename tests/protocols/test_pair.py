"""Without a dealer: two parties make the corrections that a dealer would send, or say of what they cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.program import Program
from blindformer.protocols.beaver.cells import ExpNumbers
from blindformer.protocols.beaver.fourier import Waves
from blindformer.protocols.beaver.lookup import MaskPlace, Place
from blindformer.protocols.beaver.product import Power, WrappedPower
from blindformer.protocols.beaver.recipes import MaskProduct
from blindformer.protocols.beaver.reveal import Divided
from blindformer.protocols.beaver.source import Recipe
from blindformer.protocols.beaver.values import MaskTerm
from blindformer.protocols.errors import CorrelationError, PeerGone
from blindformer.protocols.pair import source
from blindformer.protocols.pair.evaluations import evaluate
from blindformer.protocols.pair.source import PairSource, PairWire
from blindformer.protocols.pair.steps import Derivation
from blindformer.protocols.ring import sign_extend
from blindformer.protocols.rounds import ALONE, run_rounds
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.cases import FEW
from blindformer.tests.protocols.harness import in_threads
from blindformer.tests.protocols.ideal import Trusted
from blindformer.tests.protocols.pair_parties import asked, dealt, fresh_seeds, made
from blindformer.tests.protocols.programs import SOURCES, Case, Data, Draft, case_of, check, hidden
from blindformer.tests.shared.memory import memory_pair


@pytest.mark.parametrize("name", FEW)
def test_answers_are_right_with_what_the_pair_made(name):
    case, seeds = case_of(name), fresh_seeds()
    if case.inputs:
        pytest.skip("of an owner who takes no part")
    check(case, asked(case, seeds, made(case, seeds).kept[0]))


def test_the_pair_makes_what_a_dealer_would_send():
    """To the byte, where all bits of the values are read: of the same seeds, and with the weights as their masks."""
    names = ("linears_that_read_one_value", "product", "less-24", "matrix_products", "polynomial-1")
    for name in (*names, "reached-(12, 6, 20)"):
        case, seeds = case_of(name), fresh_seeds()
        assert made(case, seeds).kept[0].content == dealt(case, seeds).content, name


def test_a_walk_stops_where_a_batch_is_full(monkeypatch):
    """So memory is bounded: there are more rounds, and answers are a dealer's to the digit. Bytes are not compared, as
    the top bits of a wrap times a bit, which nobody reads, are at times others than a dealer's."""
    case, seeds, rounds = case_of("relu"), fresh_seeds(), []
    answers = [asked(case, seeds, dealt(case, seeds))]
    for size in (source.BATCH_ELEMENTS, 50, 1):
        monkeypatch.setattr(source, "BATCH_ELEMENTS", size)
        corrections = made(case, seeds)
        answers.append(asked(case, seeds, corrections.kept[0]))
        rounds.append(corrections.rounds[0])
    assert rounds[0] < rounds[1] < rounds[2]
    assert all(torch.equal(other[name], value) for name, value in answers[0].items() for other in answers[1:])


@pytest.mark.parametrize("drop", [0, 3])
@pytest.mark.parametrize(
    ("cells", "columns", "width"), [(64, 4, 64), (512, 4, 64), (256, 1, 32), (64, 1, 24), (8, 4, 64)]
)
def test_tables_are_read_by_the_keys_and_numbers_that_a_dealer_would_make(cells, columns, width, drop):
    """Two tables at one place, and a third, whose points are in one group."""
    d, data = Draft(), Data(1)
    low = 12 if columns > 1 or drop else 0
    place = {"start": -5, "bits": low + cells.bit_length() - 1, "low": low, "drop": drop if columns > 1 else low}
    for count, tables in ((70, 2), (5, 1)):
        x = hidden(d, data, count, bits=place["bits"])
        for _ in range(tables):
            d("lookup", x, d.constant(data.ints(cells, columns, bits=12)), width=width, **place)
    case, seeds = d.case(), fresh_seeds()
    kept = made(case, seeds).kept[0]
    assert kept.content == dealt(case, seeds).content
    check(case, asked(case, seeds, kept))


def test_several_queries_are_made_together():
    """Their points are in the same groups, and their bits begin words of their own."""
    d, data = Draft(), Data(1)
    x = hidden(d, data, 70, bits=18)
    d("lookup", x, d.constant(data.ints(64, 4, bits=12)), start=-5, bits=18, low=12, drop=0)
    d("lookup", x, d.constant(data.ints(64, 1, bits=12)), start=-5, bits=18, low=12, drop=12, width=24)
    d("less", x, threshold=17, bits=18)
    case, seeds = d.case(), fresh_seeds()
    assert made(case, seeds, runs=3).kept[0].content == dealt(case, seeds, runs=3).content


def derived(shares: dict[str, Recipe], shape: tuple[int, ...], width: int) -> torch.Tensor:
    """What both make of a recipe: the server's correction and the client's share together."""
    trusted, ends, results = Trusted(), memory_pair("server", "client", 20), {}
    share = Stream(new_seed(), "share").integers("share", shape, width)

    def party(role: str, end) -> None:
        wire, pair = PairWire.over(end, trusted.products(role == "server")), trusted.pair(role == "server")
        job = Derivation(shares[role], shape, width, share if role == "client" else None)
        run_rounds(ALONE, lambda _: evaluate(pair, job), lambda _, result: results.update({role: result}), wire)

    in_threads([lambda: party("server", ends[0]), lambda: party("client", ends[1])], ends)
    assert results["client"] is None
    return sign_extend(results["server"] + share, 8 * width)


MASK = torch.cat([Data(3).words(1000), torch.tensor([0, 1, -1, 1 << 18, -(1 << 18), 1 << 19, -(1 << 19)])])


def of_shares(recipe: Callable[[torch.Tensor, torch.Tensor], Recipe]) -> tuple[Recipe, dict[str, Recipe]]:
    """A recipe of a mask and of bits: in the clear, and by party."""
    bits, stream = Data(4).words(2, 16), Stream(new_seed(), "mask")
    mask, planes = stream.integers("mask", MASK.shape), stream.integers("bits", bits.shape)
    return recipe(MASK, bits), {"client": recipe(mask, planes), "server": recipe(MASK - mask, bits ^ planes)}


def shared(bits: int, zeros: int = 0) -> tuple[torch.Tensor, dict[str, MaskTerm]]:
    """Masks of so many bits above the low zeros: their values, and each party's share."""
    value, client = Data(bits).words(300), Stream(new_seed(), "mask").integers("mask", (300,))
    if bits < 64:
        value = -(value & (1 << bits) - 1)
        value[:4] = -torch.tensor([0, (1 << bits) - 1, 1 << bits - 1, 1])
        client[4:7] = -torch.tensor([0, 1 << bits - 1, 1])
    if bits == 1:
        value = -value
    value, client = value << zeros, client << zeros
    terms = {"client": MaskTerm(client, zeros, bits), "server": MaskTerm(value - client, zeros, bits)}
    return value, terms


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("bits", [(1, 64), (24, 24), (26, 1), (31, 64), (64, 64), (2, 29)])
def test_products_of_masks_of_few_bits_are_exact(bits, width):
    (x, left), (y, right) = shared(bits[0]), shared(bits[1])
    shares = {role: MaskProduct(left[role], right[role]) for role in ("client", "server")}
    assert torch.equal(derived(shares, x.shape, width), sign_extend(x * y, 8 * width))
    shares = {role: MaskProduct(left[role], left[role]) for role in ("client", "server")}
    assert torch.equal(derived(shares, x.shape, width), sign_extend(x * x, 8 * width))


@pytest.mark.parametrize("exponent", [2, 3, 5])
def test_powers_of_a_mask_with_and_without_its_wrap_are_exact(exponent):
    (low, of_low), (wrap, of_wrap) = shared(24), shared(1, zeros=24)
    shares = {role: Power(of_low[role], exponent) for role in ("client", "server")}
    assert torch.equal(derived(shares, low.shape, 8), low**exponent)
    shares = {role: WrappedPower(of_low[role], of_wrap[role], exponent) for role in ("client", "server")}
    more = (low + wrap) ** exponent - low**exponent
    assert torch.equal(derived(shares, low.shape, 5), sign_extend(more >> 24, 40))


@pytest.mark.parametrize(("rate", "low"), [(8.0, 18), (8.0, 19), (16.0, 20)])
def test_an_exponential_is_off_by_a_unit_and_by_little_of_itself(rate, low):
    at = Place(0, low + 3, low)
    recipe, shares = of_shares(lambda mask, bits: ExpNumbers(MaskPlace(mask, at), bits, rate, 29, 1))
    want = recipe.value()
    assert bool(((derived(shares, tuple(want.shape), 7) - want).abs() <= 2 + (want >> 20)).all())


@pytest.mark.parametrize(("fraction", "width", "periods"), [(12, 4, 3), (16, 5, 1), (18, 8, 3), (28, 8, 1)])
def test_a_wave_is_off_by_little_more_than_a_unit(fraction, width, periods):
    recipe, shares = of_shares(lambda mask, bits: Waves(mask, 21, periods, 5, fraction))
    want = recipe.value()
    assert int((derived(shares, tuple(want.shape), width) - want).abs().max()) <= 2


@pytest.mark.parametrize(("bits", "ring"), [(5, 29), (16, 40), (12, 64)])
def test_a_divided_mask_is_exact_in_the_bits_that_are_read(bits, ring):
    recipe, shares = of_shares(lambda mask, planes: Divided(mask, bits, ring))
    width = -(-(ring - bits) // 8)
    error = derived(shares, tuple(MASK.shape), width) - recipe.value()
    assert not bool((error & (1 << ring - bits) - 1).any())


def test_an_answer_is_rounded():
    d = Draft()
    x = hidden(d, Data(2), 40, bits=30)
    whole = d.values[x]
    out = d._emit("reveal", (x,), whole >> 12, 24, {"to": "client", "bits": 12, "ring": 36})
    program = Program(instructions=tuple(d.instructions), outputs={"answer": out})
    case, seeds = Case(program, *(d.tensors[kind] for kind in SOURCES)), fresh_seeds()
    answer = sign_extend(asked(case, seeds, made(case, seeds).kept[0])["answer"], 24)
    assert bool(((answer << 12) - whole).abs().le(1 << 12).all())


@dataclass(frozen=True)
class Unknown:
    def value(self) -> torch.Tensor:
        raise AssertionError("two parties alone have no values")


def test_what_two_parties_cannot_make_is_named_where_it_comes():
    def wire(parts):
        raise AssertionError("a message was sent")

    walk = PairSource(Trusted().pair(True), Stream(new_seed(), "query"), wire, False, {}, None)
    with pytest.raises(CorrelationError, match="Unknown: two parties alone cannot make it yet"):
        walk.derived("1", (3,), Unknown())


def test_after_an_error_a_pair_makes_nothing_more():
    """Half of its steps were taken, and the peer may have seen them: another try needs other masks and transfers."""
    case = case_of("relu")
    correlations, pair, calls = Correlations(case.program), Trusted().pair(True), []

    def lost(parts):
        calls.append(len(parts))
        raise PeerGone("client", "closed the connection", "start it again")

    with pytest.raises(PeerGone):
        correlations.make(pair, Stream(new_seed(), "query"), lost, case.weights)
    for _ in range(2):
        with pytest.raises(CorrelationError, match="failed before; start a new session"):
            correlations.make(pair, Stream(new_seed(), "query"), lost, case.weights)
    assert len(calls) == 1


def test_masks_of_one_seed_are_used_once():
    """A second run under the same masks would send the difference of two corrections."""
    case, pair, seed = case_of("relu"), Trusted().pair(False), new_seed()
    server, client = memory_pair("server", "client", 1)
    with pair.using(Stream(seed, "query")):
        pass
    wire = PairWire.over(client, Trusted().products(False))
    with pytest.raises(CorrelationError, match="masks were used before; draw a new seed"):
        Correlations(case.program).make(pair, Stream(seed, "query"), wire, {})
    assert client.meter.sent == server.meter.sent == 0
    with pair.using(Stream(seed, "another query")):
        pass


def test_a_pool_gives_each_transfer_once():
    """In whatever pieces: products of shared bits hold, numbers are those chosen, and no word comes twice."""
    trusted = Trusted()
    server, client = trusted.pair(True).pool, trusted.pair(False).pool
    seen: list[int] = []
    for shape in ((3,), (2, 700), (1, 5), (1024,)):
        mine, theirs = server.triples(shape), client.triples(shape)
        assert torch.equal((mine.a ^ theirs.a) & (mine.b ^ theirs.b), mine.product ^ theirs.product)
        seen += [word for part in (*mine, *theirs) for word in part.flatten().tolist()]
    for words in (1, 30, 1025):
        choices, chosen = server.received_numbers(words)
        pairs = client.sent_numbers(words)
        taken = choices[:, None] >> torch.arange(64) & 1
        assert torch.equal(chosen, torch.where(taken.flatten().bool(), pairs[1], pairs[0]))
        seen += [*choices.tolist(), *pairs.flatten().tolist()]
    assert len(set(seen)) == len(seen)
