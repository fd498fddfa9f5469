"""Arithmetic of oblivious transfer on many rows at once: key streams, rows of bit planes, trees, codes, hashes, checks.

A plane has a bit of each row: int64 [words], row i in bit i % 64 of word i / 64. A row is 128 bits: int64 [2], bit p in
bit p % 64 of word p / 64. Numbers of words are multiples of `WORDS`.

AES-128 is that of `cryptography`, or the processor's own in the kernels (kernels/transfer.c), which give the same bits.

The hash of row x with tweak i is TMMO, pi(pi(x) xor i) xor pi(x), where pi is AES under a public key (Guo, Katz, Wang,
Yu, "Efficient and secure multiparty computation from fixed-key block ciphers", https://eprint.iacr.org/2019/074,
section 7.4). It is tweakable circular correlation robust if AES is an ideal cipher: whoever does not know Delta cannot
tell hashes of x xor Delta, for any x and tweaks none of which comes twice, from random. Tweaks are a row's number in
its batch, and few rows have one key (silent.py), after Guo, Katz, Wang, Weng and Yu for many
instances (https://eprint.iacr.org/2019/1168).

The bound grows with hashes times guesses, and an attack meets it. With z = pi(x) xor i, the hash xor i is pi(z) xor z,
whatever the tweak: so a guess of z is compared with all rows of a key at once, and gives Delta where it fits one. A key
hashes 2^16 rows at most, so that takes 2^111 guesses of Delta's 127 bits; the bound leaves 109. Besides, inner values
of a key meet with probability 2^-96, of a set-up's 2^16 keys 2^-80.

A tree's nodes have children H(x) and x xor H(x), with H(x) = pi(s) xor s and s = (high half, low xor high): circular
correlation robust if AES is an ideal cipher (Guo and others, "Half-Tree", https://eprint.iacr.org/2022/1431). The
party that misses a leaf knows one hash a level of a node plus Delta: 2^13 of a key, which leave 112 bits.
"""

from __future__ import annotations

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel

WORDS = 8  # of a plane: 512 rows
BITS = 128  # of a row
_BLOCK_BYTES = 16
_REDUCTION = 0x87  # x^128 = x^7 + x^2 + x + 1
_CODE_TERMS = 10
_SUM_WORDS = 1 << 6  # of a plane that are summed at once: counts of 2^12 rows are exact in float32


def key_stream(key: bytes, counter: bytes, start: int, words: int) -> Tensor:
    """AES in counter mode, int64 [words], from block `start` on."""
    first = (int.from_bytes(counter) + start) % (1 << 128)
    cipher = Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(_BLOCK_BYTES))).encryptor()
    return torch.frombuffer(bytearray(cipher.update(bytes(8 * words))), dtype=torch.int64)


@kernel(bindings.fold)
def fold(leaves: Tensor, known: bool, start: int, planes: Tensor, total: Tensor) -> Tensor:
    """Sums of the streams of leaves [2^depth, 4], a key and a first counter each, from block `start` on.

    `total` [words] gets that of all; plane j of `planes` [depth, words] that of the leaves with bit j of their index
    set. `known`: the first leaf is; else its stream counts as zeros. Returns `total`."""
    words, planes_sums = total.numel(), torch.zeros_like(planes)
    left: list[Tensor] = [torch.zeros_like(total)] * (len(planes) + 1)
    for index, leaf in enumerate(leaves.numpy()):
        node, level, material = torch.zeros_like(total), 0, leaf.tobytes()
        if index or known:
            node = key_stream(material[:_BLOCK_BYTES], material[_BLOCK_BYTES:], start, words)
        while index >> level & 1:  # a right child: its parent is the sum of both
            planes_sums[level] ^= node
            node = node ^ left[level]
            level += 1
        left[level] = node
    planes.copy_(planes_sums)
    return total.copy_(left[-1])


@kernel(bindings.transpose_planes)
def transpose_planes(planes: Tensor, rows: Tensor) -> Tensor:
    """`rows` [64 words, 2] of planes [128, words]. Returns `rows`."""
    bits = np.unpackbits(planes.numpy().view(np.uint8), axis=1, bitorder="little")
    packed = np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little")
    return rows.copy_(torch.from_numpy(packed.view(np.int64)))


@kernel(bindings.hash_rows)
def hash_rows(rows: Tensor, offset: Tensor, first: int, key: Tensor, width: int, out: Tensor) -> Tensor:
    """Hashes of rows [n, 2] with an offset [2] added, whose tweaks count from `first`, n a multiple of 64. `out` gets
    their low `width` bytes, signed, [n]; or, of width 0, their lowest bits as a plane. Returns `out`."""
    once = _encrypted(key, rows ^ offset)
    low = (_encrypted(key, once ^ _numbered(first, len(rows))) ^ once)[:, 0]
    if width:
        return out.copy_(low << 64 - 8 * width >> 64 - 8 * width)
    bits = np.packbits((low & 1).to(torch.uint8).numpy(), bitorder="little")
    return out.copy_(torch.from_numpy(bits.view(np.int64)))


@kernel(bindings.grow_nodes)
def grow_nodes(nodes: Tensor, key: Tensor, children: Tensor) -> Tensor:
    """`children` [trees, 2 n, 2] of nodes [trees, n, 2]: all left ones, then all right ones. Returns the sums
    [trees, 2, 2] of the left and the right ones."""
    low, high = nodes.unbind(-1)
    turned = torch.stack([high, low ^ high], -1)
    left = _encrypted(key, turned) ^ turned
    torch.cat([left, nodes ^ left], 1, out=children)
    sides = children.numpy().reshape(len(nodes), 2, -1, 2)
    return torch.from_numpy(np.bitwise_xor.reduce(sides, axis=2))


@kernel(bindings.add_code)
def add_code(rows: Tensor, secret: Tensor, key: Tensor) -> Tensor:
    """Add to each of rows [n, 2] ten rows of `secret` [2^16, 2], whose places are AES of block numbers, 16 bits each.
    n: a multiple of 128. Returns `rows`."""
    drawn = _encrypted(key, _numbered(0, len(rows) * _CODE_TERMS // 8))
    for places in drawn.numpy().view(np.uint16).reshape(-1, _CODE_TERMS).T:
        rows ^= secret[torch.from_numpy(places.astype(np.int64))]
    return rows


@kernel(bindings.check_sums)
def check_sums(planes: Tensor, factors: Tensor) -> Tensor:
    """Of planes [n, words], the sums [n, 2] of blocks of 128 bits times their factors, which are in `factors` [words],
    in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1; bit p is the coefficient of x^p.

    As a product of bit matrices: bit t of a block counts x^t times the block's factor."""
    total = np.zeros((len(planes), BITS), dtype=np.uint8)
    for at in range(0, factors.numel(), _SUM_WORDS):
        low, high = (factors[at : at + _SUM_WORDS].numpy().view(np.uint64)[side::2].copy() for side in (0, 1))
        multiples = np.empty((len(low), BITS, 2), dtype=np.uint64)
        for power in range(BITS):
            multiples[:, power, 0], multiples[:, power, 1] = low, high
            carry = high >> np.uint64(63)
            high = high << np.uint64(1) | low >> np.uint64(63)
            low = low << np.uint64(1) ^ carry * np.uint64(_REDUCTION)
        columns = np.unpackbits(multiples.view(np.uint8).reshape(-1, 16), axis=1, bitorder="little")
        part = np.ascontiguousarray(planes[:, at : at + _SUM_WORDS].numpy())
        bits = np.unpackbits(part.view(np.uint8), axis=1, bitorder="little")
        counts = torch.from_numpy(bits).float() @ torch.from_numpy(columns).float()
        total ^= (counts.to(torch.int64) & 1).to(torch.uint8).numpy()
    return torch.from_numpy(np.packbits(total, axis=1, bitorder="little").view(np.int64))


def _encrypted(key: Tensor, blocks: Tensor) -> Tensor:
    cipher = Cipher(algorithms.AES(key.numpy().tobytes()), modes.ECB()).encryptor()
    data = cipher.update(blocks.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(data), dtype=torch.int64).view(blocks.shape)


def _numbered(first: int, count: int) -> Tensor:
    """Blocks [count, 2] that count up."""
    return torch.stack([torch.arange(first, first + count), torch.zeros(count, dtype=torch.int64)], 1)
