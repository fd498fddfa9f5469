"""Pseudo-random streams for masks: AES-128 in counter mode, keyed per purpose.

Every array of masks has a key and a first counter block of its own, derived from the seed by HKDF-SHA256 with a label
(session, query, instruction, name of the array), so no two arrays share key stream and none depends on the order in
which others are drawn. Torch's generators are never used for masks.

Why the first counter is secret, and a seed longer than AES's key: whoever knows the first block of 2^30 arrays, all
made from one counter, finds a key of one of them with 2^98 guesses (Biham, "How to decrypt or even substitute
DES-encrypted messages in 2^28 steps", Information Processing Letters 84, 2002). With 2^128 counters a guess fits one
array, and the 128 bits stay.
"""

from __future__ import annotations

import math

import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from torch import Tensor

from ..cores import side_by_side
from .devices import CPU
from .seeds import SEED_BYTES, new_seed
from .wire import elements, held_in, pinned, unpack

__all__ = ["SEED_BYTES", "Stream", "derive", "new_seed"]

_KEY_BYTES = _BLOCK_BYTES = 16


def derive(seed: bytes, label: str) -> bytes:
    """A seed bound to `label`. Whoever knows it learns nothing of `seed` or of other labels."""
    return HKDF(algorithm=hashes.SHA256(), length=SEED_BYTES, salt=b"blindformer", info=label.encode()).derive(seed)


class Stream:
    """All masks of one party for one purpose (a query, the weights): arrays by label, each drawn once, on `device`."""

    def __init__(self, seed: bytes, purpose: str, device: torch.device = CPU) -> None:
        self.device = device
        # HKDF needs a 32-byte pseudo-random key for expansion alone: extract once, expand per array.
        self.key = HKDF(algorithm=hashes.SHA256(), length=32, salt=b"blindformer", info=purpose.encode()).derive(seed)

    @classmethod
    def of_key(cls, key: bytes, device: torch.device = CPU) -> Stream:
        """The stream whose `key` this is. Whoever has the key draws the same masks, and learns nothing of the seed, or
        of its streams for other purposes."""
        stream = cls.__new__(cls)
        stream.key, stream.device = key, device
        return stream

    def on(self, device: torch.device) -> Stream:
        """The same stream, which draws on a device."""
        return self if device == self.device else Stream.of_key(self.key, device)

    def integers(self, label: str, shape: tuple[int, ...], width: int = 8, narrow: bool = False) -> Tensor:
        """Integers whose low `width` bytes are uniform; those above are the sign's."""
        size = elements(shape) * width
        drawn = bytearray(size) if self.device == CPU else pinned(size)
        if size:
            length = _KEY_BYTES + _BLOCK_BYTES
            key_material = HKDFExpand(algorithm=hashes.SHA256(), length=length, info=label.encode()).derive(self.key)
            _draw(key_material[:_KEY_BYTES], key_material[_KEY_BYTES:], drawn, size if self.device == CPU else _PIECE)
        return unpack(drawn, 0, shape, width, held_in(width, narrow), self.device)

    def reader(self, label: str) -> KeyStream:
        """The array of masks with this label, piece by piece."""
        material = HKDFExpand(algorithm=hashes.SHA256(), length=_KEY_BYTES + _BLOCK_BYTES, info=label.encode())
        drawn = material.derive(self.key)
        return KeyStream(drawn[:_KEY_BYTES], drawn[_KEY_BYTES:])


class KeyStream:
    """Key stream that is read once, from its beginning on."""

    def __init__(self, key: bytes, counter: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()

    def int32(self, count: int) -> Tensor:
        """The next uniform integers, int32 [count]."""
        drawn = torch.empty(count, dtype=torch.int32)
        if count:
            self._cipher.update_into(_zeros(4 * count), memoryview(drawn.numpy()).cast("B"))
        return drawn


def _draw(key: bytes, counter: bytes, out: bytearray | memoryview, piece: int) -> None:
    """Fill `out` with the key stream, of so many bytes a thread: for a GPU one core draws too slowly."""

    def fill(at: int, part: bytearray | memoryview) -> None:
        first = (int.from_bytes(counter) + at // _BLOCK_BYTES) % (1 << 8 * _BLOCK_BYTES)
        cipher = Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(_BLOCK_BYTES))).encryptor()
        # Encrypting zeros gives the key stream itself; a fresh zero page costs less than reading entropy.
        cipher.update_into(_zeros(len(part)), part)

    if len(out) <= piece:
        fill(0, out)
        return
    whole = memoryview(out)
    side_by_side(lambda at: fill(at, whole[at : at + piece]), range(0, len(out), piece))


_PIECE = 1 << 22  # bytes, whole blocks
_ZEROS = bytes(1 << 24)


def _zeros(size: int) -> memoryview | bytes:
    return memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)


# Normal numbers from the system's randomness: of noise that protects somebody.

_BITS = 52


def gaussian(count: int, seed: bytes | None = None) -> Tensor:
    """Standard normal numbers, float64, by Box and Muller from a fresh stream of the system's randomness."""
    half = -(-count // 2)
    stream = Stream(seed or new_seed(), "gaussian noise")
    radius, angle = ((stream.integers(label, (half,)) >> (64 - _BITS)).double() for label in ("radius", "angle"))
    u = (radius + 2.0 ** (_BITS - 1) + 0.5) / 2.0**_BITS  # in (0, 1)
    length, turn = torch.sqrt(-2 * torch.log(u)), angle * (2 * math.pi / 2.0**_BITS)
    return torch.cat([length * torch.cos(turn), length * torch.sin(turn)])[:count]
