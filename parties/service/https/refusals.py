"""What the service says no to: each with its HTTP status, and one line that says what to do."""

from __future__ import annotations

from ....protocols.errors import BlindformerError
from ...transport.frames import NEW_CERTIFICATE


class Refusal(BlindformerError):
    """A request of encrypted queries that is not answered.

    `status`: of the HTTP reply. `retry_after`: seconds, where asking again helps.
    """

    def __init__(self, status: int, what: str, retry_after: float | None = None) -> None:
        self.status, self.retry_after = status, retry_after
        super().__init__(what)


def busy(why: str, seconds: float) -> Refusal:
    seconds = max(1.0, min(600.0, round(seconds)))
    return Refusal(503, f"the server is busy ({why}); ask again in {seconds:g} seconds", seconds)


def revoked() -> Refusal:
    return Refusal(403, f"this certificate was revoked; {NEW_CERTIFICATE}")


def gone() -> Refusal:
    return Refusal(410, "no keys of this certificate under that name: never sent, or expired; send keys again")
