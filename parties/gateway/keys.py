"""The key that callers show: from the environment, or from a file that only its owner can read, made at first use."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ...errors import BlindformerError
from ...files import whole_file

ENVIRONMENT = "BLINDFORMER_GATEWAY_KEY"
LEAST = 20  # characters


class GatewayError(BlindformerError):
    """The gateway cannot start."""


def find_key(path: Path) -> tuple[str, str]:
    """The key, and where it is. Errors: GatewayError; the message never holds the key."""
    if (given := os.environ.get(ENVIRONMENT)) is not None:
        return _checked(given, ENVIRONMENT), ENVIRONMENT
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with whole_file(path, 0o600, new=True) as file:
                    file.write(f"bf-{secrets.token_urlsafe(32)}\n".encode())
            except FileExistsError:  # another gateway was quicker
                pass
        if path.stat().st_mode & 0o077:
            raise GatewayError(f"{path}: others on this machine can read the key; run: chmod 600 {path}")
        return _checked(path.read_text(encoding="ascii"), str(path)), str(path)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "is not ASCII"
        raise GatewayError(
            f"{path}: the key cannot be read or written ({reason}); name another file with --key-file, or set "
            f"{ENVIRONMENT}"
        ) from None


def _checked(key: str, place: str) -> str:
    key = key.strip()
    if len(key) < LEAST or not (key.isascii() and key.isprintable()) or " " in key:
        raise GatewayError(
            f"{place}: a key is {LEAST} or more ASCII characters without spaces; delete it, and a good one is made"
        )
    return key
