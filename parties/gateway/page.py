"""The gateway's one page, and the policy that lets it run its own script and style, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def page() -> tuple[str, str]:
    """Its text, and its Content-Security-Policy."""
    text = FILE.read_text(encoding="utf-8")
    hashes = {}
    for name in ("script", "style"):
        (inner,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        hashes[name] = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    return text, POLICY.format(**hashes)
