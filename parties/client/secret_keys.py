"""A client's secret key on its own disk, where only its owner reads it: so that evaluation keys travel once."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ...protocols.ckks.facts import CircuitNeeds
from ...protocols.errors import BlindformerError
from ..certificates.authority import write
from ..config import Address


class KeyFileError(BlindformerError):
    """A key on disk that cannot be used."""


class KeptKeys:
    """In `folder`, for one program at one server: the secret key, and the name of its evaluation keys there."""

    def __init__(self, folder: Path, facts: CircuitNeeds, address: Address) -> None:
        what = f"{facts.program} {facts.parameters} {address}"
        self._folder = folder
        self._secret = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.secret"
        self._name = self._secret.with_suffix(".name")

    def load(self) -> tuple[bytes, str] | None:
        """The secret key and the name, if both are there. Errors: KeyFileError."""
        try:
            if os.name == "posix" and self._secret.stat().st_mode & 0o077:
                raise KeyFileError(f"{self._secret} can be read by other users; delete it, and new keys are made")
            secret, name = self._secret.read_bytes(), self._name.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return (secret, name) if re.fullmatch("[0-9a-f]{32}", name) else None

    def store(self, secret: bytes, name: str) -> None:
        """Errors: KeyFileError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file, content in ((self._secret, secret), (self._name, name.encode())):
                write(file, content, mode=0o600)
        except OSError as error:
            raise KeyFileError(
                f"{self._folder}: cannot keep keys there ({error.strerror}); choose another folder"
            ) from None
