"""Streams, hashes and check sums against published vectors, at every level of processors."""

from __future__ import annotations

from functools import reduce
from operator import xor

import pytest
import torch
from blindformer.protocols.kernels import bindings, library
from blindformer.protocols.oblivious.folding import add_code, check_sums, fold, grow_nodes, hash_rows, transpose_planes
from blindformer.tests import levels
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

AT_ALL_LEVELS = pytest.mark.parametrize("level", levels.EVERY)
FIPS_KEY = bytes(range(16))
FIPS_PLAIN = bytes.fromhex("00112233445566778899aabbccddeeff")


def words(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int64)


@AT_ALL_LEVELS
def test_streams_are_aes_in_counter_mode(level):
    """NIST SP 800-38A, F.5.1: the four output blocks. The stream of leaf 1 is what the plane of bit 0 gets."""
    key, counter = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"), bytes(range(0xF0, 0x100))
    leaves = words(bytes(32) + key + counter).view(2, 4)
    planes, total = torch.empty(1, 8, dtype=torch.int64), torch.empty(8, dtype=torch.int64)
    with levels.at(level):
        fold(leaves, False, 0, planes, total)
    blocks = (
        "ec8cdf7398607cb0f2d21675ea9ea1e4362b7c3c6773516318a077d7fc5073ae"
        "6a2cc3787889374fbeb4c81b17ba6c44e89c399ff0f198c6d40a31db156cabfe"
    )
    assert planes.numpy().tobytes().hex() == total.numpy().tobytes().hex() == blocks


@AT_ALL_LEVELS
def test_a_row_s_hash_is_tmmo(level):
    """pi(pi(x) xor i) xor pi(x), with pi(x) of FIPS 197, C.1."""
    once = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
    tweak = (7).to_bytes(16, "little")
    inner = bytes(a ^ b for a, b in zip(once, tweak, strict=True))
    twice = Cipher(algorithms.AES(FIPS_KEY), modes.ECB()).encryptor().update(inner)
    expected = words(bytes(a ^ b for a, b in zip(twice, once, strict=True)))[0]
    offset = torch.tensor([3, -5])
    rows = (words(FIPS_PLAIN) ^ offset).repeat(64, 1)
    numbers, narrow, plane = (torch.empty(n, dtype=torch.int64) for n in (64, 64, 1))
    with levels.at(level):
        hash_rows(rows, offset, 0, words(FIPS_KEY), 8, numbers)
        hash_rows(rows, offset, 0, words(FIPS_KEY), 3, narrow)
        hash_rows(rows, offset, 0, words(FIPS_KEY), 0, plane)
    assert numbers[7] == expected
    assert len(set(numbers.tolist())) == 64  # of one row, and 64 tweaks
    assert torch.equal(narrow, numbers << 40 >> 40)
    assert (plane[0] >> torch.arange(64) & 1).tolist() == (numbers & 1).tolist()


def test_tweaks_do_not_part_the_rows_of_a_key():
    """Why a key hashes few rows: a guess z gives pi(z) xor z, which is the hash xor tweak of any row with this z."""
    encrypt = Cipher(algorithms.AES(FIPS_KEY), modes.ECB()).encryptor().update
    decrypt = Cipher(algorithms.AES(FIPS_KEY), modes.ECB()).decryptor().update
    z = bytes(range(100, 116))
    inner = [words(z) ^ torch.tensor([tweak, 0]) for tweak in range(64)]  # pi of a row
    rows = torch.stack([words(decrypt(one.numpy().tobytes())) for one in inner])
    hashes = hash_rows(rows, torch.zeros(2, dtype=torch.int64), 0, words(FIPS_KEY), 8, torch.empty(64).long())
    guess = (words(encrypt(z)) ^ words(z))[0]
    assert torch.equal(hashes ^ torch.arange(64), guess.repeat(64))


@AT_ALL_LEVELS
def test_a_node_s_children_are_its_hash_and_the_rest(level):
    """pi(s) xor s with pi(s) of FIPS 197, C.1, and s = (high half, low xor high); left children come first."""
    turned = words(FIPS_PLAIN)
    node = torch.stack([turned[1] ^ turned[0], turned[0]])
    left = words(bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")) ^ turned
    nodes, children = node.repeat(3, 2, 1), torch.empty(3, 4, 2, dtype=torch.int64)
    nodes[0, 1] = 0
    with levels.at(level):
        sums = grow_nodes(nodes, words(FIPS_KEY), children)
    assert torch.equal(children[1], torch.stack([left, left, node ^ left, node ^ left]))
    assert torch.equal(children[0, 1], children[0, 3])  # of a node that is zero
    assert torch.equal(sums, torch.stack([children[:, i] ^ children[:, i + 1] for i in (0, 2)], 1))


@AT_ALL_LEVELS
def test_a_row_gets_the_ten_secret_rows_whose_places_aes_draws(level):
    secret = torch.stack([torch.arange(1 << 16), torch.ones(1 << 16, dtype=torch.int64)], 1)
    rows = torch.tensor([7, 1 << 40]).repeat(256, 1)
    with levels.at(level):
        add_code(rows, secret, words(FIPS_KEY))
    encrypt = Cipher(algorithms.AES(FIPS_KEY), modes.ECB()).encryptor().update
    stream = b"".join(encrypt(number.to_bytes(16, "little")) for number in range(320))
    for row in (0, 1, 127, 128, 255):
        places = [int.from_bytes(stream[at : at + 2], "little") for at in range(20 * row, 20 * row + 20, 2)]
        assert rows[row].tolist() == [7 ^ reduce(xor, places), 1 << 40]


def reversed_bits(block: str) -> Tensor:
    """GCM's blocks have the coefficient of x^0 in a byte's highest bit."""
    return words(bytes(int(f"{byte:08b}"[::-1], 2) for byte in bytes.fromhex(block)))


@AT_ALL_LEVELS
def test_check_sums_multiply_in_the_field_of_gcm(level):
    """The GCM specification's test case 2: X_1 H, in the last block but one of several."""
    plane, factors = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)
    plane[4:6], factors[4:6] = (
        reversed_bits("0388dace60b6a392f328c2b971b2fe78"),
        reversed_bits("66e94bd4ef8a2c3b884cfa59ca342b2e"),
    )
    with levels.at(level):
        assert torch.equal(check_sums(plane[None], factors)[0], reversed_bits("5e2ec746917062882c85b0685353deb7"))
        plane[6:], factors[6:] = torch.tensor([9, 8]), torch.tensor([1, 0])  # the block of factor one
        expected = reversed_bits("5e2ec746917062882c85b0685353deb7") ^ torch.tensor([9, 8])
        assert torch.equal(check_sums(plane[None], factors)[0], expected)


@AT_ALL_LEVELS
def test_planes_become_rows(level):
    planes, rows = torch.zeros(128, 8, dtype=torch.int64), torch.empty(512, 2, dtype=torch.int64)
    places = [(0, 0), (127, 511), (70, 65), (3, 300)]
    for plane, row in places:
        planes[plane, row // 64] |= torch.tensor(1) << row % 64
    with levels.at(level):
        transpose_planes(planes, rows)
    assert [(64 * word + bit, row) for row, word in rows.nonzero().tolist() for bit in range(64)
            if rows[row, word] >> bit & 1] == sorted(places, key=lambda place: place[1])  # fmt: skip


@pytest.mark.parametrize("level", levels.KERNELS)
def test_a_level_takes_the_instructions_that_the_processor_has(level, monkeypatch):
    """Of four blocks at once only with VAES, at a level of AVX-512; without AES none; and all give the same bits."""
    leaves, sums = torch.randint(-(1 << 62), 1 << 62, (8, 4)), []
    for has, most in (({"aes", "pclmulqdq", "vaes", "vpclmulqdq"}, 4), ({"aes", "pclmulqdq"}, 1), (set(), 0)):
        if not has <= bindings.features():
            continue
        monkeypatch.setattr(bindings, "features", lambda has=has: frozenset(has))
        planes, total = torch.empty(3, 24, dtype=torch.int64), torch.empty(24, dtype=torch.int64)
        with levels.at(level):
            assert bindings.transfer_lanes() == min(most, library.constant("transfer_lanes"))
            fold(leaves, True, 5, planes, total)
        sums.append(torch.cat([planes.flatten(), total]))
        monkeypatch.undo()
    assert all(torch.equal(sums[0], other) for other in sums)
