"""What travels between an encrypting client and its server: of known sizes, and harmless to whoever reads it."""

import contextlib
import json
import resource
import struct
import threading

import numpy as np
import pytest
from blindformer.parties.session.encrypted_queries import receive_sealed, send_sealed
from blindformer.protocols.ckks import sealed
from blindformer.protocols.ckks.facts import CircuitNeeds, facts_from
from blindformer.protocols.ckks.parameters import CkksError, Parameters, insecure_parameters
from blindformer.protocols.ckks.sealed import SealedError, check_sealed
from blindformer.protocols.errors import PeerError, PeerTimeout
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.shared.processes import alone
from hypothesis import given, settings
from hypothesis import strategies as st

seal = pytest.importorskip("tenseal.sealapi")

from blindformer.protocols.ckks.circuit import Ends  # noqa: E402
from blindformer.protocols.ckks.keys import ClientKeys, SealContext, load_evaluation, load_request  # noqa: E402
from blindformer.protocols.ckks.sealed import from_bytes, to_bytes  # noqa: E402

PROGRAM = "ab" * 32
PARAMETERS = insecure_parameters(2048, 3)
ROTATIONS = [1, 5]
FACTS = CircuitNeeds(
    PROGRAM, PARAMETERS, 1, tuple(sorted(PARAMETERS.element(r) for r in ROTATIONS)), {0: 0, 1: 2}, {7: 3}, ("a", "b")
)


@pytest.fixture(scope="module")
def keys():
    return ClientKeys(Ends([], [], {}, ROTATIONS), PARAMETERS)


@pytest.fixture(scope="module")
def evaluation(keys):
    return list(keys.sealed_evaluation())


def fresh(keys, depth, scale=PARAMETERS.scale):
    """A fresh ciphertext's bytes."""
    plain = keys.ring.encode(np.arange(1024.0) / 1000, scale, depth)
    return to_bytes(keys._encryptor().encrypt_symmetric(plain))


@pytest.fixture(scope="module")
def request_parts(keys):
    return [fresh(keys, depth) for depth in FACTS.inputs.values()]


# Sizes.


@pytest.mark.parametrize("parameters", [PARAMETERS, Parameters(16384, 34, 10)], ids=["small", "128 bits"])
def test_sizes_follow_from_the_parameters(parameters):
    ring = SealContext(parameters)
    generator = seal.KeyGenerator(ring.context)
    encryptor = seal.Encryptor(ring.context, generator.secret_key())
    degree, levels, plain = parameters.degree, parameters.levels, seal.Plaintext()
    for depth in (0, levels - 1):
        ring.encoder.encode([0.5, 0.25], ring.ids[depth], parameters.scale, plain)
        whole = seal.Ciphertext()
        encryptor.encrypt_symmetric(plain, whole)
        halved = to_bytes(encryptor.encrypt_symmetric(plain))
        check_sealed(halved, sealed.ciphertext_bytes(degree, levels + 1 - depth, seeded=True), "fresh")
        check_sealed(to_bytes(whole), sealed.ciphertext_bytes(degree, levels + 1 - depth, seeded=False), "whole")
        assert len(halved) < 0.52 * len(to_bytes(whole))
    element = parameters.element(3)
    check_sealed(to_bytes(generator.create_relin_keys()), sealed.relinearisation_bytes(degree, levels), "key")
    check_sealed(to_bytes(generator.create_galois_keys([element])), sealed.rotation_bytes(degree, levels), "key")


def test_facts_survive_json():
    assert facts_from(json.loads(json.dumps(FACTS.to_json())), secure=False) == FACTS


WEAK = {"degree": 4096, "scale_bits": 40, "levels": 5, "secure": True}


@pytest.mark.parametrize(
    ("change", "secure", "message"),
    [
        ({}, True, "not held to 128 bits are for tests alone"),
        ({"parameters": WEAK}, True, "below 128-bit security"),
        ({"inputs": [[0, 9]]}, False, "damaged"),
        ({"inputs": 3}, False, "damaged"),
        ({"elements": ["x"]}, False, "damaged"),
        ({"parameters": {}}, False, "damaged"),
    ],
)
def test_facts_that_are_weak_or_damaged_are_refused(change, secure, message):
    with pytest.raises(CkksError, match=message):
        facts_from({**FACTS.to_json(), **change}, secure=secure)


# There and back.


def test_keys_and_requests_arrive_whole(keys, evaluation, request_parts):
    ring, values = SealContext(PARAMETERS), seal.Plaintext()
    loaded = load_evaluation(ring, ((item.number, data) for item, data in received(evaluation, FACTS.key_items())))
    assert set(loaded.galois) == set(FACTS.elements)
    parts = {item.number: data for item, data in received(request_parts, FACTS.request_items())}
    inputs = load_request(ring, parts, FACTS.inputs)
    seal.Decryptor(ring.context, keys._secret).decrypt(inputs[1], values)
    assert ring.encoder.decode_double(values)[500] == pytest.approx(0.5, abs=1e-6)


def received(sealed_items, items, *first):
    """What arrives of these bytes, from a peer that says `first`."""
    here, there = memory_pair("server", "client", 20)

    def send():
        for message in first:
            there.send_message(message)
        with contextlib.suppress(PeerError):
            send_sealed(there, sealed_items)
        there.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return list(receive_sealed(here, items, 20))
    finally:
        here.close()
        thread.join()


def test_a_secret_key_comes_back_from_its_bytes(keys, request_parts):
    again = ClientKeys(keys.ends, PARAMETERS, keys.secret_bytes())
    ciphertext, values = from_bytes(seal.Ciphertext, again.ring.context, request_parts[0], "x"), seal.Plaintext()
    seal.Decryptor(again.ring.context, again._secret).decrypt(ciphertext, values)
    assert again.ring.encoder.decode_double(values)[500] == pytest.approx(0.5, abs=1e-6)


# What is refused.


def test_messages_that_are_none_are_refused(evaluation, request_parts):
    items = FACTS.request_items()
    for parts, first, error in (
        (request_parts[:1], (), "closed the connection"),
        ([request_parts[0][:-1]], (), "has no header"),
        (evaluation[:1], (), "are more than one of these parameters can have|holds .* bytes"),
        (request_parts[::-1], (), "holds .* bytes where these parameters have"),
        ([], ({"bytes": 2**40},), "1099511627776 bytes are more than"),
        ([], ({"bytes": -1},), "no place here"),
        ([], ({"length": 5},), "no place here"),
    ):
        with pytest.raises(PeerError, match=error):
            received(parts, items, *first)


def test_what_trickles_is_refused_in_the_end(request_parts):
    here, there = memory_pair("server", "client", 20)
    send_sealed(there, request_parts)
    with pytest.raises(PeerTimeout, match="did not send all in 0 seconds"):
        list(receive_sealed(here, FACTS.request_items(), 0))


def test_a_key_of_another_rotation_is_refused(evaluation):
    swapped = zip((0, 1, *FACTS.elements), [*evaluation[:2], evaluation[3], evaluation[2]], strict=True)
    with pytest.raises(SealedError, match="is the key of another rotation"):
        load_evaluation(SealContext(PARAMETERS), swapped)


def test_a_ciphertext_of_another_scale_or_ring_is_refused(keys):
    ring = SealContext(PARAMETERS)
    with pytest.raises(SealedError, match="another level or scale"):
        load_request(ring, {0: fresh(keys, 0, 2.0**39)}, {0: 0})
    other = ClientKeys(keys.ends, insecure_parameters(2048, 3, 39))
    with pytest.raises(SealedError, match="of other parameters"):
        load_request(ring, {0: fresh(other, 0, 2.0**39)}, {0: 0})


def bomb(inner: int, blocks: int, first: bytes = b"", version: tuple[int, int] = (4, 1)) -> bytes:
    """A stream of SEAL's form that inflates to 128 KiB a block of four bytes, after blocks that are given."""
    body = b"".join(
        (int(n == blocks - 1) | 1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0" for n in range(blocks)
    )
    frame = b"\x28\xb5\x2f\xfd\xa0" + inner.to_bytes(4, "little") + first + body
    return sealed.HEADER.pack(0xA15E, 16, *version, 2, 0, 16 + len(frame)) + frame


def test_what_would_grow_beyond_its_size_is_refused():
    inner = sealed.ciphertext_bytes(2048, 4, seeded=True)
    with pytest.raises(SealedError, match="grows beyond its size"):
        check_sealed(bomb(inner, 5000), inner, "bomb")


def test_an_object_within_an_object_does_not_grow_beyond_what_is_read(keys):
    """SEAL's loader inflates as it reads: a ciphertext's data may be a stream of their own, but never all of it."""
    ring, count = keys.ring, 2 * 2 * 2048  # two parts of two primes: one block of zstd's
    data = struct.pack("<Q", count) + bytes(8 * count)
    stored = (len(data) << 3).to_bytes(3, "little") + data  # a block as it is, before 131 MB in blocks of four bytes
    version = sealed.HEADER.unpack_from(fresh(keys, 2))[2:4]
    within = bomb(len(data) + (1000 << 17), 1000, stored, version)
    about = struct.pack("<4Q?3QdQ", *ring.ids[2], True, 2, 2048, 2, PARAMETERS.scale, 1) + within
    outer = bomb(len(about), 0, (len(about) << 3 | 1).to_bytes(3, "little") + about, version)

    assert alone(kilobytes_to_load, outer) < 30_000


def kilobytes_to_load(ciphertext):
    """In a process that had no larger peak before."""
    ring = SealContext(PARAMETERS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert from_bytes(seal.Ciphertext, ring.context, ciphertext, "bomb").size() == 2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Noise, and good bytes with some of them changed, in the headers or anywhere, cut, or sewn to noise."""
    size, noise = len(good), st.binary(max_size=200)

    def changed(places: int) -> st.SearchStrategy[bytes]:
        return st.builds(lambda at, value: good[:at] + bytes([value]) + good[at + 1 :],
                         st.integers(0, places - 1), st.integers(0, 255))  # fmt: skip

    def sewn(at: int, tail: bytes) -> bytes:
        return good[:at] + (tail * (size // max(1, len(tail)) + 1))[: size - at]

    return st.one_of(
        noise,
        st.builds(lambda start, tail: start + good[len(start) :], noise, noise),
        changed(60),
        changed(size),
        st.builds(sewn, st.integers(sealed.HEADER.size, size - 1), noise),
        st.integers(0, size).map(lambda end: good[:end]),
    )


@pytest.mark.hypothesis
def test_ten_thousand_random_ciphertexts_do_no_harm(request_parts):
    """They are refused, or loaded as what they are."""
    ring, good, inner, taken = SealContext(PARAMETERS), request_parts[1], FACTS.request_items()[1].inner, []

    def read(data):
        try:
            check_sealed(data, inner, "it")
            ring.checked(from_bytes(seal.Ciphertext, ring.context, data, "it"), 2, "it", spread=1.0)
        except SealedError:
            return False
        return True

    @settings(max_examples=500)
    @given(st.lists(damaged(good), min_size=20, max_size=20))
    def read_twenty(damaged_items):
        taken.extend(map(read, damaged_items))

    read_twenty()
    assert len(taken) >= 10_000
    assert 0 < sum(taken) < 5_000, "some bytes of a ciphertext are as good as others"


@pytest.mark.parametrize("which", [0, 1, 2], ids=["relinearisation", "public", "rotation"])
@pytest.mark.hypothesis
def test_random_keys_do_no_harm(evaluation, which):
    ring, item, taken = SealContext(PARAMETERS), FACTS.key_items()[which], []
    good = {item.number: data for item, data in zip(FACTS.key_items()[:2], evaluation, strict=False)}

    def read(data):
        try:
            check_sealed(data, item.inner, "it")
            load_evaluation(ring, {**good, item.number: data}.items())
        except SealedError:
            return False
        return True

    @settings(max_examples=25)
    @given(st.lists(damaged(evaluation[which]), min_size=20, max_size=20))
    def read_twenty(damaged_items):
        taken.extend(map(read, damaged_items))

    read_twenty()
    assert 0 < sum(taken) < len(taken) / 2
