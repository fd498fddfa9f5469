"""Our dealer as CrypTen's tuple provider: CrypTen's own operations, on triples that no party knows.

CrypTen's caching works with it: `crypten.trace()`, a run, `crypten.fill_cache()`, and a later run takes its tuples from
there. Each is taken once. All parties ask in the same order, so the number of a request names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .source import NPartySource
from .tuples import Request, make_tuple
from .versions import CryptenError, load_crypten

load_crypten()
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402
from crypten.mpc.provider.provider import TupleProvider  # noqa: E402

NAME = "blindformer"
Deal = Callable[[Request, int], NPartySource]
"""Where the shares of a request with this number come from."""


class DealerProvider(TupleProvider):
    """Errors: those of the dealer's channel; CryptenError for an operation that CrypTen's tuples do not have."""

    NAME = NAME

    def __init__(self, deal: Deal) -> None:
        super().__init__()
        self._deal, self._asked = deal, 0

    def ask(self, request: Request) -> tuple[NPartySource, int]:
        """This party's source of what the dealer makes for the next request, and the request's number."""
        number = self._asked
        self._asked += 1
        return self._deal(request, number), number

    def generate_additive_triple(self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any):
        """Shares of a, b and op(a, b)."""
        if args:
            raise CryptenError(f"crypten: {op} with positional options has no tuple; name them")
        options = {name: value for name, value in kwargs.items() if value is not None}
        return self._arithmetic(device, "additive", (size0, size1), op=op, options=options)

    def square(self, size: Any, device: Any = None):
        """Shares of r and r r."""
        return self._arithmetic(device, "square", (size,))

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None):
        """Shares by exclusive or of a, b and a & b."""
        return tuple(BinarySharedTensor.from_shares(x.to(device)) for x in self._ask("binary", (size0, size1)))

    def wrap_rng(self, size: Any, device: Any = None):
        """Shares of r, and of how often their sum leaves the ring."""
        return self._arithmetic(device, "wraps", (size,))

    def B2A_rng(self, size: Any, device: Any = None):
        """A random bit, shared additively and by exclusive or."""
        additive, bits = self._ask("bits", (size,))
        first = ArithmeticSharedTensor.from_shares(additive.to(device), precision=0)
        return first, BinarySharedTensor.from_shares(bits.to(device))

    def _arithmetic(self, device: Any, kind: str, sizes: tuple, **more: Any) -> tuple[Any, ...]:
        shares = self._ask(kind, sizes, **more)
        return tuple(ArithmeticSharedTensor.from_shares(share.to(device), precision=0) for share in shares)

    def _ask(self, kind: str, sizes: tuple, **more: Any) -> tuple[Tensor, ...]:
        try:
            request = Request.model_validate({"kind": kind, "sizes": [tuple(size) for size in sizes], **more})
        except ValueError:
            raise CryptenError(f"crypten: {more.get('op', kind)} with these options has no tuple here") from None
        source, number = self.ask(request)
        return make_tuple(source, request, f"tuple {number}")
