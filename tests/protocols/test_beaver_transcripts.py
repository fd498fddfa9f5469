"""What each party receives: uniform whatever the input, fresh every time, and only what it must receive.

`suspicions` says what looks wrong in a transcript, by the tests of tests/uniformity.py. It errs on a good
one less than once in 10^6 runs, and the same checks catch every protocol that is broken on purpose below.
"""

import json
import math
import threading
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.protocols.operations import of_kind
from blindformer.protocols.operations.fourier import POINTS, WAVE
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.parties.session.site import run_session
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.harness import Seeds, run_beaver
from blindformer.tests.protocols.programs import Case, Data, Draft, handed_over
from blindformer.tests.uniformity import Sample, difference, log_p_values, sample

FALSE_ALARM = 1e-10  # of one comparison; a transcript takes some thousand


def every_primitive(x: torch.Tensor, mask: torch.Tensor) -> Case:
    """All primitives on [64, 32] values at 12 fractional bits, each on an opening of its own; one result."""
    data, d = Data(3), Draft()
    own, m = d.client(x), d.client(mask)
    y = d("linear", own, d.weight(data.ints(32, 32, bits=9)))
    y = d("rescale", d("mul_private", y, d.weight(data.ints(32, bits=10))), bits=18)
    z = d("mul_private", d("linear", y, d.weight(data.ints(32, 32, bits=9))), m)
    products = [
        d("mul", z, z),
        d("mul", own, d("add", z, own)),
        d("polynomial", d("sub", z, own), coefficients=[1, 2, 3]),
    ]
    bit = d("less", d("rescale", z, bits=10), threshold=50, bits=33)
    positive = d("mul", bit, d("rescale", z, bits=9))
    mixed = d("matmul", d("permute", positive, dims=[1, 0]), d("add", y, z))
    total = d("add", d("linear", d("add", products[0], products[1]), d.weight(data.ints(32, 32, bits=2))), products[2])
    total = d("linear", d("rescale", total, bits=2), d.constant(data.ints(32, 32, bits=2)))
    narrow = d("rescale", d("mul_private", y, d.weight(data.ints(32, bits=4)), width=40), bits=8, ring=40, width=32)
    read = [  # at places of z
        d("lookup", z, d.constant(data.ints(8, 3, bits=9)), start=-5, bits=12, low=9, drop=0),
        d("lookup", z, d.constant(data.ints(64, 3, bits=9)), start=-5, bits=12, low=6, drop=0),  # by keys
        d("exp", z, d.constant(data.ints(2, 9, bits=9).abs()), start=-5, bits=12, low=9, drop=0, rate=8.0, fraction=9),
        d(
            "fourier",
            z,
            d.constant(data.ints(4, 2, bits=9)),
            d.constant(data.ints(POINTS + 1, bits=WAVE)),
            bits=12,
            fraction=9,
        ),
        d("less", z, threshold=50, bits=20, drop=6),
        d("sum", d("sides", z, low=-50, high=50, bits=20, drop=6), dims=[1], keepdim=True),
        d("sum", d("reached", z, start=-5, bits=12, low=9), dims=[1], keepdim=True),
    ]
    moved = d("add", y, d.constant(5))
    read += [d("mul", moved, moved), d("matmul", moved, d("slice", moved, dim=0, start=0, stop=32, step=1))]
    rescaled = [d("rescale", d("mul", each, y), bits=9) for each in read]
    return d.case(d("rescale", mixed, bits=9), d("rescale", total, bits=9), narrow, *rescaled)


def inputs(kind: str, owner: str = "client") -> Case:
    """`owner` "away": the data come in shares, and go back in shares."""
    if kind == "zeros":
        case = every_primitive(torch.zeros(64, 32), torch.zeros(64, 1))
    else:
        case = every_primitive(Data(1).ints(64, 32, bits=12), Data(2).bits(64, 1))
    return handed_over(case) if owner == "away" else case


def even(samples: Iterable[Sample]) -> bool:
    """Whether all of them look uniform."""
    return min(log_p_values(list(samples)), default=0.0) > math.log(FALSE_ALARM)


def related(pairs: Iterable[tuple[Sample, Sample]]) -> bool:
    """Whether the difference of any two openings is not uniform: as when they share a mask."""
    return not even(difference(a, b) for a, b in pairs)


def alike(samples: list[Sample]) -> list[tuple[Sample, Sample]]:
    """All pairs of openings of one shape."""
    kind = lambda arrays: [(array.dtype, array.shape) for array in arrays]  # noqa: E731
    return [(a, b) for a, b in combinations(samples, 2) if kind(a) == kind(b)]


def raw(frames: list[bytes]) -> list[Sample]:
    return [[torch.frombuffer(bytearray(frame), dtype=torch.uint8)] for frame in frames]


def suspicions(ran) -> set[str]:
    uneven = {"bytes" for frames in ran.received.values() if not even(raw(frames))}
    uneven |= {f"a {view}" for (_, view), openings in ran.openings.items() if not even(openings)}
    return uneven | {f"two of one {view}" for (_, view), openings in ran.openings.items() if related(alike(openings))}


def related_runs(first, second) -> bool:
    """Whether any opening of one transcript is related to the same one of the other."""
    return any(related(zip(seen, second.openings[view], strict=True)) for view, seen in first.openings.items())


OWNERS = pytest.mark.parametrize("owner", ["client", "away"])


def test_these_are_all_primitives():
    used = {item.op for item in inputs("zeros").program.instructions}
    assert of_kind("private", "shared", "result") - used == {"keep"}  # which sends one opening, as a product does


@OWNERS
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_every_party_sees_uniform_bytes(kind, owner):
    ran = run_beaver(inputs(kind, owner))
    assert {role for role, _ in ran.openings} == {"server", "client"} | ({"owner"} if owner == "away" else set())
    assert all(sum(map(len, ran.received[party])) > 100_000 for party in ("server", "client"))
    assert suspicions(ran) == set()
    assert even(raw(ran.offline_frames))


@OWNERS
def test_the_same_input_twice_gives_unrelated_transcripts(owner):
    seeds = Seeds()
    case = inputs("random", owner)
    runs = [run_beaver(case, seeds), run_beaver(case, seeds, "query 1"), run_beaver(case, Seeds(weights=seeds.weights))]
    for first, second in combinations(runs, 2):
        assert not related_runs(first, second)
        for party in ("server", "client"):
            pairs = list(zip(first.received[party], second.received[party], strict=True))
            assert all(len(a) == len(b) for a, b in pairs)
            assert all(a != b for a, b in pairs if len(a) >= 16)


@pytest.mark.parametrize(
    ("mask", "bits", "caught"),
    [
        ("client0", 0, "a share"),
        ("client0", 40, "a share"),
        ("/zero", 0, "two of one answer of the server"),
        ("/zero", None, "two of one answer of the client"),
        ("/open", 0, "a sum"),
        ("/r", 0, "a sum"),
        ("/masks", 0, "a xor"),
        ("/beta/bits", 0, "a xor"),
        ("/half/client", 0, "a half"),
        ("/half/server", 0, "a half"),
        ("/private", 0, "a message"),
        ("/half/client", 40, "a half"),
        ("/open", 63, "a message"),
        ("/open", None, "two of one sum"),
    ],
)
def test_a_broken_protocol_is_caught(monkeypatch, mask, bits, caught):
    """With masks of so many bits, or (None) one mask for every opening of a kind."""
    honest = Stream.integers

    def broken(self, label, shape, *rest):
        if not label.endswith(mask):
            return honest(self, label, shape, *rest)
        if bits is None:
            return honest(self, "one for all", shape, *rest)
        return honest(self, label, shape, *rest) & ((1 << bits) - 1)

    monkeypatch.setattr(Stream, "integers", broken)
    if mask == "/zero":
        case = one_result_twice()
    else:  # random bits need no mask to look random
        owner = "away" if mask.startswith("client") else "client"
        case = inputs("zeros" if mask in ("/masks", "/beta/bits") else "random", owner)
    assert caught in suspicions(run_beaver(case))


def one_result_twice() -> Case:
    """For an owner who takes no part. The shares it is given of one value must not tell that it is one value."""
    d, data = Draft(), Data(5)
    x = d("linear", d.input(data.ints(64, 32)), d.weight(data.ints(32, 32)))
    return d.case(x, d("neg", d("neg", x)), to="owner")


def test_an_owner_who_takes_no_part_sees_fresh_shares_of_its_results_alone():
    """Nothing passes between the parties to reveal; what each gives is uniform, also beside its other answers."""
    ran = run_beaver(one_result_twice())
    assert ran.rounds == 1  # the linear's
    assert suspicions(ran) == set()
    first, second = ran.outputs.values()
    assert torch.equal(first, second)


def test_masks_that_return_in_the_next_query_are_caught():
    seeds = Seeds()
    assert related_runs(run_beaver(inputs("zeros"), seeds), run_beaver(inputs("random"), seeds))


@pytest.mark.parametrize("case", [CASES["one_value_many_readers"], lambda: inputs("random")], ids=["readers", "all"])
def test_no_mask_is_drawn_twice(case, monkeypatch):
    """Each array of masks is drawn once by its owner and once by the dealer, in a session of two queries.

    Masks of weights (B) are the exception: they are the same in every session, and made again when they are needed.
    """
    honest, drawn = Stream.integers, Counter()

    def counted(self, label, shape, *rest):
        if label != "B":
            drawn[threading.current_thread().name == "blindformer dealer", self.key, label] += 1
        return honest(self, label, shape, *rest)

    monkeypatch.setattr(Stream, "integers", counted)
    run_session(case(), queries=2)
    assert len(drawn) > 100
    assert set(drawn.values()) == {1}


def parsed(payloads: list[bytes]) -> list[dict]:
    return [json.loads(payload) for payload in payloads]


def test_the_dealer_receives_seeds_a_program_and_counters_alone():
    """The same for any input, but for its seeds. It tells the client nothing."""
    lengths = []
    for kind in ("random", "zeros"):
        case = inputs(kind)
        session = run_session(case, queries=2)
        from_server, from_client = (session.received["dealer", peer] for peer in ("server", "client"))
        seed, size, program, keys, *rest = from_server
        assert parsed(rest) == [{"query": 0}, {"query": 1}, {"bye": True}]
        assert program.decode() == case.program.to_json()
        assert json.loads(size) == {"program": len(program)}
        assert len(keys) == 32 * len(case.weights)
        seeds = parsed([seed, *from_client])
        assert [list(message) for message in seeds] == [["seed"], ["seed"]]
        assert len({bytes.fromhex(message["seed"]) for message in seeds} | {keys}) == 3
        assert {len(message["seed"]) for message in seeds} == {64}
        assert parsed(session.received["client", "dealer"]) == [{"seeded": True}]
        lengths.append([len(payload) for payload in (*from_server, *from_client)])
    assert lengths[0] == lengths[1]


def test_the_server_receives_openings_and_counters_alone():
    """Openings are what the price declares upwards; nothing else comes in, and no result."""
    case = inputs("random")
    session, declared = run_session(case), price(case.program)
    wanted, live, query, go, *frames, last = session.received["server", "client"]
    assert set(wanted) == {1}
    assert parsed([live, query, go, last]) == [
        {"live": True}, {"query": 0, "store": None, "more": False, "then": None}, {"go": 0}, {"bye": True}
    ]  # fmt: skip
    assert sum(map(len, frames)) == declared.up
    assert even(raw(frames))


def test_a_result_goes_to_the_client_alone():
    d, data = Draft(), Data(5)
    case = d.case(d("add", d.client(data.ints(40)), d.weight(data.ints(40))))
    ran = run_beaver(case)
    assert ran.online.sent == 0
    assert ran.received["server"] == []
    assert ran.online.received == 8 * 40
    assert ran.rounds == 1


def test_masked_weights_are_uniform_and_differ_between_models():
    """What the client holds of W is W - B; two versions of a model never meet the same B."""
    d, data = Draft(), Data(5)
    weight = data.ints(64, 64, bits=3)
    d("linear", d.client(data.ints(2, 64)), d.weight(weight))
    case = d.case()
    (name,) = case.weights
    changed = Case(case.program, case.client, {name: weight + torch.eye(64, dtype=torch.int64)}, {})
    received = [run_session(one).received["client", "server"] for one in (case, changed)]
    masked = [frame for frames in received for frame in frames if len(frame) == 8 * 64 * 64]
    assert len(masked) == 2
    seen = [sample(torch.frombuffer(bytearray(frame), dtype=torch.int64), 8) for frame in masked]
    assert even(seen)
    assert not related([tuple(seen)])


def test_weight_masks_are_bound_to_the_content_of_the_weights():
    from blindformer.parties.session.masked_weights import weight_keys

    secret, w = new_seed(), torch.ones(4, 4, dtype=torch.int64)

    def key(name: str = "w", value: torch.Tensor = w, secret: bytes = secret) -> bytes:
        return weight_keys(secret, {name: value}, [name])[name]

    assert key() == key(value=w.clone())
    others = [key(value=w + 1), key(secret=new_seed()), key(value=w.reshape(2, 8)), key(name="v")]
    assert len({key(), *others}) == 5
