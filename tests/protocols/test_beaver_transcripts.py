"""What each party receives: uniform whatever the input, fresh every time, and only what it must receive.

`suspicions` says what looks wrong in a transcript. It errs on a good one less than once in 10^7 runs, and
the same checks catch every protocol that is broken on purpose below.
"""

import json
import threading
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from blindformer.models.pricing import price
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.harness import Seeds, run_beaver, run_session
from blindformer.tests.protocols.programs import CASES, Case, Data, Draft, handed_over
from scipy import stats

FALSE_ALARM = 1e-9  # of one comparison; a transcript takes under a hundred
ENOUGH = 1 << 10  # elements from which an opening is compared with others


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
    narrow = d("rescale", d("mul_private", y, d.weight(data.ints(32, bits=4)), width=40), bits=8, ring=40, width=32)
    return d.case(d("rescale", mixed, bits=9), d("rescale", total, bits=9), narrow)


def inputs(kind: str, owner: str = "client") -> Case:
    """`owner` "away": the data come in shares, and go back in shares."""
    if kind == "zeros":
        case = every_primitive(torch.zeros(64, 32), torch.zeros(64, 1))
    else:
        case = every_primitive(Data(1).ints(64, 32, bits=12), Data(2).bits(64, 1))
    return handed_over(case) if owner == "away" else case


def uniform(counts: np.ndarray) -> bool:
    return bool(stats.chisquare(counts).pvalue > FALSE_ALARM)


def byte_counts(frames: list[bytes]) -> np.ndarray:
    return np.bincount(np.frombuffer(b"".join(frames), np.uint8), minlength=256)


def planes(opening: tuple[torch.Tensor, int]) -> np.ndarray:
    """Bytes of an opening's elements [elements, width], low end first."""
    values, width = opening
    return values.contiguous().reshape(-1).numpy().view(np.uint8).reshape(-1, 8)[:, :width]


def bits_balanced(data: np.ndarray) -> bool:
    """Every bit position of the elements is a fair coin, to within seven standard deviations."""
    ones = np.unpackbits(np.ascontiguousarray(data), axis=1).mean(0)
    return bool((np.abs(ones - 0.5) < 7 * 0.5 / len(data) ** 0.5).all())


def balanced(data: np.ndarray) -> bool:
    """One bits and zero bits in equal number, to within seven standard deviations."""
    return abs(np.unpackbits(np.ascontiguousarray(data)).mean() - 0.5) < 7 * 0.5 / (8 * data.size) ** 0.5


def related(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the difference or the exclusive or of two openings is not uniform: as when they share a mask."""
    width = a.shape[1]
    x, y = (np.pad(v, ((0, 0), (8 - width, 0))).reshape(-1).view(np.int64) for v in (a, b))
    difference = (x - y).view(np.uint8).reshape(-1, 8)[:, -1]
    return not all(uniform(np.bincount(v, minlength=256)) for v in (difference, a[:, -1] ^ b[:, -1], a[:, 0] ^ b[:, 0]))


def suspicions(ran) -> set[str]:
    found = set()
    if not all(uniform(byte_counts(frames)) for frames in ran.received.values() if frames):
        found.add("bytes")
    for (_, view), arrays in ran.openings.items():
        openings = [planes(opening) for opening in arrays]
        for width in {o.shape[1] for o in openings}:
            if not bits_balanced(np.concatenate([o for o in openings if o.shape[1] == width])):
                found.add(f"bits of a {view}")
        if not all(balanced(o) for o in openings):
            found.add(f"ones of a {view}")
        if not all(uniform(np.bincount(o[:, -1], minlength=256)) for o in openings if len(o) >= ENOUGH):
            found.add(f"high bits of a {view}")
        large = [o for o in openings if len(o) >= ENOUGH]
        if any(related(a, b) for a, b in combinations(large, 2) if a.shape == b.shape):
            found.add(f"two of one {view}")
    return found


def related_runs(first, second) -> bool:
    """Whether any opening of one transcript is related to the same one of the other."""
    return any(
        related(planes(a), planes(b))
        for view in first.openings
        for a, b in zip(first.openings[view], second.openings[view], strict=True)
        if a[0].numel() >= ENOUGH
    )


OWNERS = pytest.mark.parametrize("owner", ["client", "away"])


@OWNERS
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_every_party_sees_uniform_bytes(kind, owner):
    ran = run_beaver(inputs(kind, owner))
    assert {role for role, _ in ran.openings} == {"server", "client"} | ({"owner"} if owner == "away" else set())
    assert all(sum(map(len, ran.received[party])) > 100_000 for party in ("server", "client"))
    assert suspicions(ran) == set()
    assert uniform(byte_counts(ran.offline_frames))


@OWNERS
def test_very_different_inputs_give_the_same_distribution(owner):
    runs = [run_beaver(inputs(kind, owner)) for kind in ("zeros", "random")]
    for party in ("server", "client"):
        counts = np.stack([byte_counts(run.received[party]) for run in runs])
        assert stats.chi2_contingency(counts).pvalue > FALSE_ALARM
    for view in runs[0].openings:
        high = np.stack([byte_counts([planes(o)[:, -1].tobytes() for o in run.openings[view]]) for run in runs])
        assert stats.chi2_contingency(high).pvalue > FALSE_ALARM
    assert not related_runs(*runs)


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
        ("client0", 0, "high bits of a share"),
        ("client0", 40, "high bits of a share"),
        ("/zero", 0, "two of one answer of the server"),
        ("/zero", None, "two of one answer of the client"),
        ("/open", 0, "high bits of a sum"),
        ("/r", 0, "high bits of a sum"),
        ("/masks", 0, "ones of a xor"),
        ("/beta/bits", 0, "ones of a xor"),
        ("/half/client", 0, "high bits of a half"),
        ("/half/server", 0, "high bits of a half"),
        ("/private", 0, "ones of a message"),
        ("/half/client", 40, "high bits of a half"),
        ("/open", 63, "bits of a message"),
        ("/open", None, "two of one sum"),
    ],
)
def test_a_broken_protocol_is_caught(monkeypatch, mask, bits, caught):
    """With masks of so many bits, or (None) one mask for every opening of a kind."""
    honest = Stream.integers

    def broken(self, label, shape):
        if not label.endswith(mask):
            return honest(self, label, shape)
        if bits is None:
            return honest(self, "one for all", shape)
        return honest(self, label, shape) & ((1 << bits) - 1)

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


def test_no_mask_is_drawn_twice(monkeypatch):
    """Each array of masks is drawn once by its owner and once by the dealer, in a session of two queries.

    Masks of weights (B) are the exception: they are the same in every session, and made again when they are needed.
    """
    honest, drawn = Stream.integers, Counter()

    def counted(self, label, shape):
        if label != "B":
            drawn[threading.current_thread().name == "dealer", self._key, label] += 1
        return honest(self, label, shape)

    monkeypatch.setattr(Stream, "integers", counted)
    run_session(CASES["one_value_many_readers"](), queries=2)
    assert len(drawn) > 100
    assert set(drawn.values()) == {1}


def parsed(payloads: list[bytes]) -> list[dict]:
    return [json.loads(payload) for payload in payloads]


def test_the_dealer_receives_seeds_a_program_and_counters_alone():
    case = inputs("random")
    session = run_session(case, queries=2)
    seed, size, program, keys, *rest = session.received["dealer", "server"]
    assert parsed(rest) == [{"query": 0}, {"query": 1}, {"bye": True}]
    assert program.decode() == case.program.to_json()
    assert json.loads(size) == {"program": len(program)}
    assert len(keys) == 32 * len(case.weights)
    (client,) = parsed(session.received["dealer", "client"])
    for message in (json.loads(seed), client):
        assert set(message) == {"seed"}
        assert len(bytes.fromhex(message["seed"])) == 32


def test_the_dealer_receives_the_same_for_any_input_but_for_its_seeds():
    lengths = []
    for kind in ("zeros", "random"):
        session = run_session(inputs(kind))
        lengths.append([len(p) for peer in ("server", "client") for p in session.received["dealer", peer]])
    assert lengths[0] == lengths[1]


def test_the_client_gets_nothing_from_the_dealer_and_seeds_differ():
    session = run_session(CASES["linear"]())
    assert parsed(session.received["client", "dealer"]) == [{"seeded": True}]
    server, client = session.received["dealer", "server"], session.received["dealer", "client"]
    assert len({json.loads(server[0])["seed"], json.loads(client[0])["seed"], server[3].hex()}) == 3


def test_the_server_receives_openings_and_counters_alone():
    """Openings are what the price declares upwards; nothing else comes in, and no result."""
    case = inputs("random")
    session, declared = run_session(case), price(case.program)
    wanted, live, query, go, *frames, last = session.received["server", "client"]
    assert set(wanted) == {1}
    assert parsed([live, query, go, last]) == [
        {"live": True}, {"query": 0, "spool": None, "more": False, "then": None}, {"go": 0}, {"bye": True}
    ]  # fmt: skip
    assert sum(map(len, frames)) == declared.up
    assert uniform(byte_counts(frames))


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
    words = [np.frombuffer(frame, np.uint8).reshape(-1, 8) for frame in masked]
    assert all(bits_balanced(w) for w in words)
    assert not related(*words)


def test_weight_masks_are_bound_to_the_content_of_the_weights():
    from blindformer.parties.session import weight_keys

    secret, w = new_seed(), torch.ones(4, 4, dtype=torch.int64)

    def key(name: str = "w", value: torch.Tensor = w, secret: bytes = secret) -> bytes:
        return weight_keys(secret, {name: value}, [name])[name]

    assert key() == key(value=w.clone())
    others = [key(value=w + 1), key(secret=new_seed()), key(value=w.reshape(2, 8)), key(name="v")]
    assert len({key(), *others}) == 5
