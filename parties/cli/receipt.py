"""`--receipt FILE` of the commands that compute privately, and `blindformer receipt`: show one, and check one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from typer import Argument, Option

from ...errors import BlindformerError
from ..registry import DEFAULT, deployed, find
from . import options
from .commands import CheckedCommand, example
from .output import mb, note, print_result, table
from .steps import check_new

if TYPE_CHECKING:  # importing it takes seconds
    from ..config import PricesSection
    from ..receipts.receipt import Receipt

app = typer.Typer(help="Receipts: what parties vouch for after a session.", no_args_is_help=True)
DIGITS = 16  # of a hash
NONE_MASKED = hashlib.sha256().hexdigest()  # a commitment to no weights: all of them are open


@dataclass(frozen=True)
class ReceiptOptions:
    """Of a command whose parties can vouch for what they did. The prices are those of its --config."""

    receipt: Annotated[
        Path | None,
        Option(help="File for a receipt, as JSON: what all parties state, signed (default: none)."),
    ] = None

    def reckon(self, protocol: str = DEFAULT, config: Path | None = None) -> PricesSection | None:
        """The prices of the receipt that is asked for; None: none is. Errors: BlindformerError, before anything slow,
        where there can be none."""
        if self.receipt is None:
            return None
        if not find(protocol).receipts:
            raise BlindformerError(
                f"--receipt {self.receipt}: protocol {protocol} signs nothing; use protocol {DEFAULT}, or leave it out"
            )
        check_new("--receipt", self.receipt)
        from ..config import load_settings

        return load_settings(config, deployed()).prices

    def keep(self, receipt: Receipt | BlindformerError | None) -> None:
        """Write it, after the answers. Errors: BlindformerError, also what it has in a receipt's place."""
        if isinstance(receipt, BlindformerError):
            raise receipt
        if receipt is not None and self.receipt is not None:
            receipt.save(self.receipt)
            note(f"{self.receipt}: a receipt; blindformer receipt show and check read it")


File = Annotated[Path, Argument(help="The file that --receipt wrote.")]


@app.command(cls=CheckedCommand, epilog=example("receipt show answer.json"))
def show(
    file: File,
    form: options.Form = "text",
) -> None:
    """Show a receipt without verifying it; `receipt check` verifies."""
    from ..receipts.receipt import Receipt

    receipt = Receipt.load(file)
    print_result(form, receipt.model_dump(mode="json"), *shown(receipt))


@app.command(cls=CheckedCommand, epilog=example("receipt check answer.json --ca certs/ca.pem"))
def check(
    file: File,
    ca: Annotated[
        Path | None,
        Option(help="The trusted ca.pem (default: the receipt's own, which proves only integrity)."),
    ] = None,
    form: options.Form = "text",
) -> None:
    """Verify a receipt: signatures, certificates, and that all parties state the same. Exit code 1: it was changed."""
    from ..receipts.receipt import Receipt

    receipt = Receipt.load(file)
    receipt.check(ca)
    signers = [one.statement.party for one in (receipt.own, *receipt.others)]
    trusted = f"by the CA in {ca}" if ca else "by the CA in the receipt itself; give --ca to trust another"
    line = f"{file}: as it was written; signed by {', '.join(dict.fromkeys(signers))}, certified {trusted}"
    if receipt.undealt:
        line += f"\nno dealer vouches for {', '.join(receipt.undealt)}"
    facts = {"file": file, "signed_by": signers, "ca": receipt.authority, "trusted": ca is not None}
    print_result(form, {**facts, "no_dealer": receipt.undealt}, line)


def shown(receipt: Receipt) -> list[RenderableType]:
    """For a terminal."""
    own: Any = receipt.own.statement
    rows = _private(own)
    rows += [("no dealer vouches for", session) for session in receipt.undealt]
    rows += [("signed at", f"{datetime.fromtimestamp(own.at, UTC):%Y-%m-%d %H:%M:%S} UTC"), ("CA", receipt.authority)]
    about = table("what", "value", rows=[(name, escape(str(value))) for name, value in rows])
    priced = own.prices.currency or any(Decimal(cost.money) for cost in own.costs)
    columns = (
        "party",
        "CPU s",
        "sent MB",
        f"Wh at {own.prices.watts} W",
        *([f"money {escape(own.prices.currency)}"] if priced else []),
    )
    costs = [
        (c.party, f"{c.cpu_ms / 1000:.3f}", mb(c.sent, 3), c.watt_hours, c.money)[: len(columns)] for c in own.costs
    ]
    spent = table(*columns, title="\nwhat it cost", right=(1, 2, 3, 4), rows=costs)
    traffic = [
        (statement.party, row.peer, row.kind, mb(row.sent, 3), mb(row.received, 3))
        for statement in receipt.statements
        for facts in statement.facts
        for row in facts.bytes
    ]
    moved = table("party", "with", "kind", "sent MB", "received MB", title="\nbytes", right=(3, 4), rows=traffic)
    signed = [(one.statement.party, _fingerprint(one)) for one in (receipt.own, *receipt.others)]
    tables = [*([spent] if costs else []), *([moved] if traffic else [])]
    return [about, *tables, table("signed by", "certificate", title=" ", rows=signed)]


_VERIFIED = {
    ("none", None): "nothing",
    ("audits", None): "nothing: no audit came",
    ("audits", True): "audits, which passed",
    ("audits", False): "audits, one of which failed",
    ("products", None): "nothing: there was no answer",
    ("products", True): "every product, against the weights below",
}


def _private(own: Any) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("model", own.model),
        ("plan", own.plan),
        ("protocol", f"{own.protocol}, topology {own.facts[0].topology}"),
        ("secure against", own.adversary),
        ("verified", _VERIFIED[own.facts[0].verify, own.facts[0].passed]),
        ("released to the client", ", ".join(own.released) or "nothing"),
        ("revealed to the client", ", ".join(own.revealed)),
    ]
    for facts in own.facts:
        rows.append(("session", f"{facts.session}, queries {facts.queries}"))
        rows.append(("program", facts.program[:DIGITS]))
        if facts.weights:
            rows.append(("weights", "none is masked" if facts.weights == NONE_MASKED else facts.weights[:DIGITS]))
    return [*rows, ("versions", ", ".join(f"{name} {number}" for name, number in own.versions.items()))]


def _fingerprint(signed: Any) -> str:
    from ..certificates.tls_folder import fingerprint

    return fingerprint(signed.shown)[:DIGITS]
