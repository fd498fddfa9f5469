"""The server's secret: a seed from which the masks B of its weights follow, kept as long as the weights are.

Whoever knows it and a client's masked weights knows the weights. It stays the same over sessions, so that a client
downloads W - B once.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...files import whole_file
from ...protocols.errors import BlindformerError
from ...protocols.seeds import SEED_BYTES, new_seed

_OLD_BYTES = 16  # of versions before; still safe, as an attacker finds one such secret a server


class SecretError(BlindformerError):
    """The server's secret cannot be read, or others can read it."""


def load_secret(path: Path | str) -> bytes:
    """The secret in the file at `path`; made on the first use, readable by its owner alone.

    Two processes that make it at the same moment get the same one. Errors: `SecretError`.
    """
    path = Path(path)
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Complete and closed to others from the first moment it has its name. FileExistsError if another was faster."""
    try:
        with whole_file(path, durable=True, new=True) as stream:
            stream.write(new_seed().hex().encode() + b"\n")
    except FileExistsError:
        raise
    except OSError as error:
        remedy = "give the server a folder that it may write to, with space left"
        raise SecretError(f"{path}: cannot be written ({error.strerror}); {remedy}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read(4 * SEED_BYTES)
    except OSError as error:
        raise SecretError(f"{path}: cannot be read ({error.strerror}); run as the user that owns it") from None
    if os.name == "posix" and status.st_mode & 0o077:
        raise SecretError(f"{path}: can be read by other users; run: chmod 600 {path}")
    try:
        secret = bytes.fromhex(content.decode())
    except ValueError:
        secret = b""
    if len(secret) not in (SEED_BYTES, _OLD_BYTES):
        remedy = "restore it, or remove it: a new one is made, and clients download the masked weights again"
        raise SecretError(f"{path}: is damaged; {remedy}")
    return secret
