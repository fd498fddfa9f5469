"""Values of the protocol: shares, and what has been opened of them.

Opening x under a mask makes it `x = public + sum_t coefficient_t * mask_t` with public numbers `public`,
`coefficient_t` and masks that only the dealer knows. Products of opened values then cost nothing online: they expand
into public numbers times shares of masks, and shares of products of masks that the dealer prepared. So a value is
opened once, whatever number of products, powers and comparisons read it.

Three kinds of opening:
    plain   one mask, uniform over the ring
    scaled  after a rescale to more bits: the low part, plus a wrap bit times 2^k that counts where c has no top bit.
            For a product of matrices, which sums before it can tell which wraps count, those that do are opened under
            a mask of the bits above k: then the low part and that one are a plain mask ("unwrapped")
    bit     a shared bit, masked by a random bit: x = e + (1 - 2 e) * beta
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..kernels import bindings
from ..kernels.library import kernel
from ..wire import wire_bytes

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class MaskTerm:
    """A mask (the dealer's value, a party's share); its low `zeros` bits are known to be zero.

    bits   of what is left without them: 1: it is 0 or 1; 64: any; of others: at most 0, above -2^bits
    """

    value: Tensor
    zeros: int = 0
    bits: int = 64


@dataclass(frozen=True)
class Mask:
    """The masks of an opened value, as the offline phase knows them."""

    terms: tuple[MaskTerm, ...]
    kind: str  # plain | scaled | bit


@dataclass
class OfflineValue:
    """A shared value in the offline phase: no data, only its name, shape and masks."""

    key: str
    shape: Shape
    width: int = 64  # low bits that matter
    mask: Mask | None = None  # of the elementwise opening
    plain: Tensor | None = None  # mask of the plain opening that matrix products use
    unwrapped: Tensor | None = None  # the same where its elementwise opening is scaled
    one_sided: dict[str, Tensor] = field(default_factory=dict)  # mask of the one-sided opening, by its owner
    bits: set[str] = field(default_factory=set)  # widths at which the mask's bits are shared
    powers: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)  # of the mask, from the second
    opens_at_creation: bool = False  # whether its plain opening is there as soon as it is (state.py)


@dataclass(frozen=True)
class Opened:
    """The elementwise opening of a value, as a party knows it online."""

    public: Tensor
    coefficients: tuple[Tensor | None, ...]  # None is 1
    terms: tuple[MaskTerm, ...]
    kind: str

    def mask(self) -> Tensor:
        """This party's share of the whole mask."""
        pairs = zip(self.coefficients, self.terms, strict=True)
        return sum_products(*((coefficient, term.value) for coefficient, term in pairs))


@kernel(bindings.sum_products)
def sum_products(*terms: tuple[Tensor | None, Tensor]) -> Tensor:
    """The sum of factors times values, which broadcast; a factor None is 1. One term without a factor: the value."""
    total: Tensor | None = None
    for factor, value in terms:
        if total is None:
            total = value if factor is None else factor * value
        else:
            total = total + value if factor is None else torch.addcmul(total, factor, value)
    assert total is not None
    return total


@dataclass(eq=False)
class Share:
    """A party's share of a value, and what has been opened of it."""

    key: str
    tensor: Tensor
    width: int = 64  # low bits that matter
    opened: Opened | None = None
    plain: tuple[Tensor, Tensor] | None = None  # (public, this party's share of the mask)
    unwrapped: tuple[Tensor, Tensor] | None = None  # the same, of what is open scaled
    one_sided: dict[str, Tensor] = field(default_factory=dict)
    bits: dict[str, object] = field(default_factory=dict)  # bit correlations of the opening, by width
    powers: list[tuple[Tensor, Tensor | None]] = field(
        default_factory=list
    )  # shares of the mask's powers, from the second
    pending: set[str] = field(default_factory=set)
    opens_at_creation: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)


class Tape:
    """Correlations of one query by name. Each is taken once and forgotten: a second use is impossible. The numbers
    of a large one are kept in the narrowest integers that hold what travelled, and widened where they are used."""

    def __init__(self) -> None:
        self._entries: dict[str, object] = {}
        self._used: set[str] = set()

    def put(self, key: str, entry: object) -> None:
        if key in self._entries or key in self._used:
            raise CorrelationError(f"correlation {key} is made twice; this is a bug")
        self._entries[key] = entry

    def take(self, key: str, kind: type[T]) -> T:
        if key in self._used:
            raise CorrelationError(f"correlation {key} was already used; masks are used once: make new correlations")
        if key not in self._entries:
            raise CorrelationError(f"correlation {key} was not prepared; both parties must run the same program")
        self._used.add(key)
        entry = self._entries.pop(key)
        assert isinstance(entry, kind)
        return entry

    def share(self, key: str) -> Tensor:
        """Take a share, as elements of the ring."""
        return self.take(key, Tensor).long()

    def look(self, key: str) -> Tensor:
        """A share that is not taken yet: for an audit, which reads it a second time."""
        entry = self._entries[key]
        assert isinstance(entry, Tensor)
        return entry

    def drain(self) -> Iterator[tuple[str, object]]:
        """All that is left, each taken as it is given."""
        while self._entries:
            key = next(iter(self._entries))
            self._used.add(key)
            yield key, self._entries.pop(key)

    def entries(self) -> Collection[object]:
        """What is left, to be sized, or completed before its use (point_function.py)."""
        return self._entries.values()

    def __len__(self) -> int:
        return len(self._entries)


def of_shape(value: Tensor, mask: Tensor) -> Tensor:
    """The mask of a value: a number for each of the value's. Torch would spread a smaller one over several numbers, and
    what goes out would show their differences. Errors: CorrelationError."""
    if mask.shape != value.shape:
        raise CorrelationError(
            f"a value of shape {list(value.shape)} has a mask of shape {list(mask.shape)}; nothing was "
            "sent; compile the model again"
        )
    return mask


def mask_bytes(width: int, zeros: int = 0) -> int:
    """Bytes per element to correct a mask of which `width` low bits matter and `zeros` of these are zero."""
    return wire_bytes(width - zeros)
