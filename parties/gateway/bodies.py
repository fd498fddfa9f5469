"""Request bodies, read as they come, never beyond what they can be, and not for ever; and refusals by HTTP status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from ...protocols.errors import BlindformerError

LINGER_BYTES, LINGER_SECONDS = 64 << 20, 20.0


class Refusal(BlindformerError):
    """An HTTP request that is not answered. `status`: of the reply. The message is one line that says what to do."""

    def __init__(self, status: int, what: str) -> None:
        self.status = status
        super().__init__(what)


class Bodies:
    """`silence`: seconds between two pieces; `whole`: seconds for all of them."""

    def __init__(self, silence: float, whole: float) -> None:
        self.silence, self.whole = silence, whole

    async def pieces(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body, piece by piece. Errors: Refusal: 413 beyond the limit, 408 for one that is slow, 400 if it ends."""
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise Refusal(413, f"{declared} bytes are more than this can be ({limit})")
        clock, size = asyncio.get_running_loop().time, 0
        deadline, more = clock() + self.whole, True
        while more:
            left = max(0.0, min(self.silence, deadline - clock()))
            try:
                message = await asyncio.wait_for(request.receive(), left)
            except TimeoutError:
                raise Refusal(408, "the body did not come in time; send it faster, or wait less between") from None
            if message["type"] != "http.request":
                raise Refusal(400, "the body ended early; send it whole")
            piece, more = message.get("body", b""), message.get("more_body", False)
            request.state.ended = not more
            size += len(piece)
            if size > limit:
                raise Refusal(413, f"the body is longer than this can be ({limit} bytes)")
            yield piece

    async def all(self, request: Request, limit: int) -> bytes:
        return b"".join([piece async for piece in self.pieces(request, limit)])

    @asynccontextmanager
    async def lingering(self, request: Request) -> AsyncIterator[None]:
        """Where something is refused before its body has passed, let the rest pass by, within bounds: a peer that is
        still sending would not read why."""
        try:
            yield
        except BlindformerError:
            if not getattr(request.state, "ended", False):
                with suppress(Refusal, TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        async for _ in self.pieces(request, LINGER_BYTES):
                            pass
            raise
