"""From a public model to a folder of its delegated form: written once for a model and its options, then found again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...approximations import Plan
from ..artifacts.writing import check_free
from ..building import typical_inputs
from ..cached import cached
from ..compile import Logged, Progress, part_of
from ..loading.load import Loaded, load
from .folder import check_part, save_delegated
from .head import compile_head, head_of, without_head
from .manifest import plan_name, ring_of
from .part import delegated_part
from .weights import write_integers


def delegate_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    plan: Plan | str | None = None,
    system: str | None = None,
    seconds: int | None = None,
    head: bool = False,
    lengths: Sequence[int] | None = None,
    calibration: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Prepare a model in `folder`: DIR/server and DIR/dealer for who computes, DIR/client for everyone who asks. Takes
    seconds: nothing is traced or calibrated. Of a language model in safetensors, only the client's own parameters are
    ever in memory as a whole.

    plan      "faithful": rings of 32 bits; "fast": of 24, a quarter less traffic (default: "faithful")
    system    what every conversation with a language model begins with (default: the model's own)
    seconds   of audio that a model of speech hears at once (default: 5, or what the model hears)
    head      the model's last part is private, and becomes a private session (head.py), calibrated on `calibration`, of
              which `lengths` say what texts are padded to: both as of `compile_folder`

    Errors: LoadError, DelegationError, ArtifactError.
    """
    root = Path(folder)
    check_free(root)
    progress = progress or Logged()
    loaded = model if isinstance(model, Loaded) else load(model, mapped=True)
    whole, private = loaded, None
    if head:
        name, typical = head_of(whole.model, whole.name), typical_inputs(whole, lengths, calibration)
        private = name, compile_head(whole, name, plan_name(plan), typical, part_of(progress, 0, 0.5))
        loaded, _ = without_head(whole, name)
    quantising = part_of(progress, 0.5 if head else 0, 0.9)
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".compiling-", dir=root) as files:
        part = delegated_part(
            loaded,
            plan=plan,
            system=system,
            seconds=seconds,
            progress=lambda done, total: quantising("quantise", done, total),
            write=partial(write_integers, Path(files)),
        )
        part_of(progress, 0.9, 1)("write", 0, 1)
        return save_delegated(whole, part, root, files=Path(files), head=private)


def found_or_delegated(
    model: str | Path,
    cache: Path,
    *,
    plan: Plan | str | None = None,
    progress: Progress | None = None,
    loaded: Loaded | None = None,
    first: Callable[[Path], None] | None = None,
    **options: Any,
) -> Path:
    """A folder in `cache` with this model prepared so, or a new one there. `loaded`: the model, where it is loaded
    already; `first`: as of `cached`; `options`: of `delegate_folder`. Errors: as `delegate_folder`."""
    ring_of(plan)  # before anything slow happens

    def make(folder: Path, plan: Plan | str) -> Path:
        return delegate_folder(loaded or model, folder, plan=plan, progress=progress, **options)

    return cached(model, cache, make, plan or "faithful", {"runs as it is": options}, progress, check_part, first)
