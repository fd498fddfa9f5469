"""Products between two parties under ring-LWE: exact for all numbers, of known sizes, and with nothing in the noise."""

from math import prod

import numpy as np
import pytest
import torch

pytest.importorskip("seal")

from blindformer.protocols.homomorphic.lattice import (
    CIPHERTEXT_BYTES,
    DEGREE,
    PUBLIC_BYTES,
    HomomorphicError,
    LatticeKey,
    LatticePublic,
    lattice,
    random_words,
)
from blindformer.protocols.homomorphic.linear import LinearClient, LinearServer, blocks, linear_cost
from blindformer.protocols.homomorphic.products import ProductAlice, ProductBob, product_cost, slots
from blindformer.protocols.homomorphic.replies import FLOOD_BITS, FRESH, flood_bits, fractions_of
from blindformer.protocols.homomorphic.residues import (
    as_fraction,
    fractions,
    integers,
    of_fraction,
    packed_residues,
    residue_bytes,
    scaled,
    uniform,
    unpacked_residues,
)
from blindformer.protocols.kernels import library

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")
WIDTHS = range(1, 9)


@pytest.fixture(scope="module")
def key() -> LatticeKey:
    return LatticeKey()


@pytest.fixture(scope="module")
def public(key: LatticeKey) -> LatticePublic:
    return LatticePublic(key.public())


def uniform_integers(*shape: int) -> torch.Tensor:
    return torch.from_numpy(random_words(int(np.prod(shape))).copy().view(np.int64)).view(*shape)


def low(x: torch.Tensor, width: int) -> torch.Tensor:
    return x << 64 - 8 * width


def linear_shares(key, public, a, weights, width):
    shape = tuple((weights if weights.dim() == 3 else weights[None]).shape)
    server = LinearServer(key, shape, width)
    setup = server.setup(weights)
    client = LinearClient(public, setup, shape, width)
    r = uniform_integers(*a.shape[:-1], weights.shape[-1])
    reply = client.reply(a, r)
    assert linear_cost(shape[0], a.shape[-2], *shape[1:], width) == (len(setup), len(reply))
    return server.shares(reply, a.shape[-2]).view(r.shape) + r


@pytest.mark.parametrize("width", WIDTHS)
def test_shares_of_a_product_with_known_weights_add_up_to_it(key, public, width):
    a, weights = uniform_integers(2, 9), uniform_integers(9, 65)
    assert torch.equal(low(linear_shares(key, public, a, weights, width), width), low(a @ weights, width))


@pytest.mark.parametrize(
    ("a", "weights"),
    [((1, 300), (300, 1)), ((3, 5), (5, 7)), ((2, 3), (3, DEGREE + 5)), ((70, 4), (4, 100)), ((2, 3, 5), (2, 5, 130))],
)
def test_matrices_of_odd_shapes(key, public, a, weights):
    a, weights = uniform_integers(*a), uniform_integers(*weights) >> 48
    assert torch.equal(linear_shares(key, public, a, weights, 8), a @ weights)


@pytest.mark.parametrize("number", [-(1 << 63), (1 << 63) - 1, -1, 0])
def test_extreme_numbers(key, public, number):
    a, weights = torch.full((2, 4), number), torch.full((4, 3), -(1 << 63) + 1)
    assert torch.equal(linear_shares(key, public, a, weights, 8), a @ weights)


@pytest.mark.parametrize(("hers", "his"), [(1, 1), (8, 24), (24, 26), (32, 32), (33, 64), (64, 64)])
@pytest.mark.parametrize("terms", [1, 2])
def test_shares_of_sums_of_products(key, public, terms, hers, his):
    """Of signed numbers of so many bits each, also of the largest; two sums of each of hers."""
    count, bits = DEGREE + 3 if hers == 24 else 50, hers + his
    x, y = uniform_integers(terms, count) >> 64 - hers, uniform_integers(2, terms, count) >> 64 - his
    x[:, :3], y[..., :3] = -(1 << hers - 1), -(1 << his - 1)
    y[1, :, 1:3] = -y[1, :, 1:3] - 1
    alice = ProductAlice(key, bits)
    request = alice.request(x)
    reply, (u, lack) = ProductBob(public, bits).reply(request, y)
    assert product_cost(count, terms, bits, 2) == (len(request), len(reply))
    v, below = alice.share(reply, count, 2)
    assert torch.equal(v + u + below * lack, (x * y).sum(1))
    modulus = prod(one.prime for one in slots(bits))
    assert set(lack.flatten().tolist()) == {0, torch.tensor(modulus % 2**64 - 2**64 * (modulus >> 63 & 1)).item()}


def test_shares_of_products_are_uniform_modulo_the_primes(key, public):
    """Of each party alone, whatever the numbers: over the whole range, as often below half of it as above."""
    (one,), x = slots(40), torch.full((1, DEGREE), (1 << 19) - 1)
    alice = ProductAlice(key, 40)
    for y in (0 * x[None], x[None]):
        reply, (u, lack) = ProductBob(public, 40).reply(alice.request(x), y)
        v, below = alice.share(reply, DEGREE)
        for share, low in ((u, lack.bool()), (v + one.prime + (1 << 39), below.bool())):
            assert int(share.min()) >= 0
            assert int(share.max()) < one.prime
            assert torch.equal(share < one.prime / 2, low)
            assert float(share.double().mean()) == pytest.approx(one.prime / 2, rel=0.05)
            assert float(share.double().std()) == pytest.approx(one.prime / 12**0.5, rel=0.05)


def noise_of(key: LatticeKey, reply: bytes, places: np.ndarray, message: torch.Tensor) -> np.ndarray:
    """What the key's holder sees beyond a message modulo 2^64, in units of 2^-80 of the modulus."""
    first, second = primes = lattice().sent.primes
    pair = np.zeros((2, 2, DEGREE), dtype=np.uint64)
    pair[1], pair[0][:, places] = (
        integers(reply[: 10 * DEGREE], 10, primes),
        integers(reply[10 * DEGREE :], 9, primes, 1),
    )
    out = []
    for x, y, sent in zip(*key.phases(pair)[:, places].tolist(), message.tolist(), strict=True):
        whole = x + first * ((y - x) * pow(first, -1, second) % second)
        whole -= first * second if whole > first * second // 2 else 0
        out.append((whole - sent * 2**16 + 2**79) % 2**80 - 2**79)
    return np.array(out, dtype=np.float64)


def test_noise_that_the_keys_holder_sees_is_the_flood_whatever_the_other_multiplied(key, public):
    """For no A and for the largest, it is uniform over the flood's range, which is 2^64 times that of any noise."""
    size, places = 64, np.arange(64, dtype=np.uint64) * np.uint64(DEGREE // 64)
    weights, seen = uniform_integers(64, size) >> 48, []
    client = LinearClient(public, LinearServer(key, (1, 64, size)).setup(weights), (1, 64, size))
    for number in (0, -(1 << 63)):
        a, r = torch.full((1, 64), number), uniform_integers(1, size)
        message = (a @ weights - r)[0]
        seen.append(np.concatenate([noise_of(key, client.reply(a, r), places, message) for _ in range(20)]))
    noise = 1 << 27  # more than the largest of this product
    reach = 2.0 ** (flood_bits(1 << 64, noise - (1 << 26)) - 1 + 80 - 156)
    assert flood_bits(1 << 64, 1 << 20) >= FLOOD_BITS + 20
    for one in seen:
        assert abs(one).max() < 1.3 * reach  # the flood, and what is cut off
        assert one.std() == pytest.approx(reach / 3**0.5, rel=0.1)


@pytest.mark.parametrize("modulus", [1 << 8, 1 << 32, (1 << 48) - 1, 1 << 56, 1 << 64])
def test_the_flood_takes_all_room_that_exactness_leaves(modulus):
    """Up to 0.7 of half a step of the message, and never less than 2^64 times the noise; 120 bits are drawn at most."""
    noise = 1 << 20
    bits, step = flood_bits(modulus, noise), np.prod([float(q) for q in lattice().data.primes]) / modulus
    assert bits >= (noise + FRESH).bit_length() + FLOOD_BITS
    assert noise + FRESH + 2.0 ** (bits - 1) <= 0.7 * step / 2
    assert bits == 120 or 2.0**bits > 0.69 * step / 2


def test_weights_that_are_none_read_bits_of_the_other_factor(key, public):
    """Why a server that may deviate must not have the key: with half a step of the message as a weight, the lowest bit
    of each of the client's numbers is where only noise should be, and R does not mask it."""
    width, primes = 4, lattice().primes
    half = (primes[0] * primes[1] * primes[2] >> 8 * width) // 2
    grid = np.zeros((4, 64, DEGREE // 64), dtype=np.uint64)
    for prime, plane in zip(primes, grid, strict=True):
        plane[range(64), range(64)] = half * primes[3] % prime
    client = LinearClient(public, key.encrypted(grid.reshape(4, DEGREE)), (1, 64, 64), width)
    a, r = uniform_integers(1, 64), uniform_integers(1, 64)
    seen = fractions_of(key, client.reply(a, r), 1 << 8 * width, blocks((1, 64, 64))[0].places([range(1)]), 64)
    below = seen & np.uint64(0xFFFFFFFF)  # of a step
    assert ((below > 1 << 30) & (below < 3 << 30)).tolist() == (a[0] & 1).bool().tolist()


def test_a_mask_is_all_that_the_keys_holder_decrypts(key, public):
    """The same A and R twice: every byte that is sent differs. Another R: the share moves by their difference."""
    weights, a = uniform_integers(5, 64), uniform_integers(1, 5)
    server = LinearServer(key, (1, 5, 64))
    client = LinearClient(public, server.setup(weights), (1, 5, 64))
    r = uniform_integers(1, 64)
    replies = [np.frombuffer(client.reply(a, r), dtype=np.uint8) for _ in range(2)]
    assert (replies[0] == replies[1]).mean() < 0.01
    moved = server.shares(client.reply(a, r + 7), 1)
    assert torch.equal(server.shares(replies[0].tobytes(), 1) - moved, torch.full((1, 1, 64), 7))


def test_foreign_bytes_are_one_line(key, public):
    server = LinearServer(key, (1, 3, 4))
    setup, x = server.setup(uniform_integers(3, 4)), uniform_integers(2, 3)
    with pytest.raises(HomomorphicError, match=f"{PUBLIC_BYTES}"):
        LatticePublic(b"1234")
    with pytest.raises(HomomorphicError, match="other parameters"):
        LatticePublic(b"\xff" * PUBLIC_BYTES)
    with pytest.raises(HomomorphicError, match="encrypted weights: "):
        LinearClient(public, setup + b"1", (1, 3, 4))
    with pytest.raises(HomomorphicError, match="other parameters"):
        LinearClient(public, b"\xff" * CIPHERTEXT_BYTES, (1, 3, 4)).reply(x, uniform_integers(2, 4))
    size = linear_cost(1, 1, 3, 4)[1]
    with pytest.raises(HomomorphicError, match=f"instead of {size}"):
        server.shares(bytes(size + 1), 1)
    with pytest.raises(HomomorphicError, match="second part is zero"):
        server.shares(bytes(size), 1)
    server.shares(b"\xff" * size, 1)  # any others decrypt to something
    with pytest.raises(HomomorphicError, match="request: "):
        ProductBob(public).reply(setup, x[None])
    with pytest.raises(HomomorphicError, match="reply: "):
        ProductAlice(key).share(setup, 3)
    with pytest.raises(HomomorphicError, match="do not fit"):
        LinearClient(public, setup, (1, 3, 4)).reply(uniform_integers(2, 2), uniform_integers(2, 4))


def test_a_sum_that_noise_cannot_hide_exactly_is_refused(key):
    with pytest.raises(HomomorphicError, match="split it"):
        LinearServer(key, (1, 1 << 20, 1))


def test_what_a_seed_gives_is_uniform_modulo_each_prime():
    """Also where nearly half of the words are too large; other seeds, labels and primes give others."""
    primes = 5, (1 << 30) + 3, *lattice().primes
    seeds = (bytes(32), "a"), (bytes(32), "b"), (bytes(31) + b"1", "a")
    drawn = np.stack([uniform(*seed, primes, 20_000) for seed in seeds])
    assert np.array_equal(drawn[0], uniform(*seeds[0], primes, 20_000))
    for number, prime in enumerate(primes):
        numbers = drawn[:, number]
        assert int(numbers.max()) < prime
        shares = np.bincount((numbers * np.uint64(5) // np.uint64(prime)).reshape(-1).astype(int)) / numbers.size
        assert shares == pytest.approx(0.2, abs=0.01)
    assert all(abs(np.corrcoef(rows)[0, 1]) < 0.05 for rows in (drawn[:2, 2], drawn[::2, 2], drawn[0, 2:4]))


def test_arithmetic_of_long_numbers_is_that_of_integers():
    first, second = primes = lattice().sent.primes
    values = [int(x) * int(y) % (1 << 95) - (1 << 93) for x, y in random_words(200).reshape(-1, 2)]
    values = [x % (1 << 94) - (1 << 93) for x in values]
    residues = np.array([[x % prime for x in values] for prime in primes], dtype=np.uint64)
    for size in (3, 8, 9, 10):
        sent = fractions(residues, primes, size)
        cut = [int.from_bytes(sent[i : i + size], "little") for i in range(0, len(sent), size)]
        exact = [(x % (first * second) << 8 * size) // (first * second) for x in values]
        assert all((x - y) % (1 << 8 * size) <= 1 for x, y in zip(exact, cut, strict=True))
        drop = 8 * size - 64
        expected = [x + (1 << drop - 1) >> drop if drop > 0 else x << -drop for x in values]
        assert [x % (1 << 64) for x in expected] == as_fraction(residues, primes, size).tolist()
    for modulus in (1 << 64, 1 << 24, (1 << 55) + 3):
        words = random_words(100)
        assert of_fraction(words, modulus).tolist() == [
            (x * modulus + (1 << 63) >> 64) % modulus for x in words.tolist()
        ]
        messages, product = [x % modulus for x in words.tolist()], 1
        for prime in lattice().primes:
            product *= prime
        rows = np.array([[x % prime for x in messages[:96]] for prime in lattice().primes], dtype=np.uint64)
        data = packed_residues(rows, (50, 50, 56, 56))
        assert len(data) == residue_bytes(96, (50, 50, 56, 56)) == 96 * 212 // 8
        unpacked_residues(data, (50, 50, 56, 56), unpacked := np.empty_like(rows))
        assert unpacked.tolist() == rows.tolist()
        embedded = scaled(np.array(messages, dtype=np.uint64), modulus, lattice().primes)
        assert embedded.tolist() == [[product * m // modulus % q for m in messages] for q in lattice().primes]
