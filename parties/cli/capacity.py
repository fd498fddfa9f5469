"""The options of `blindformer estimate --users`, and what it shows: what a service for many needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ..registry import priced
from . import options
from .checked import Needs, Without
from .output import MB, console, table

if TYPE_CHECKING:  # importing it takes seconds
    from ..reports.capacity import Capacity
    from ..reports.estimate import Estimate

GB, TB = 1e9, 1e12
QUERIES = "20/day"
PLANNED = Needs("--users")


@dataclass(frozen=True)
class Scale:
    """A service for many users. None: not given."""

    users: Annotated[
        int | None,
        Option(min=1, help="Plan a service for so many users: machines, network, disk, money (default: no plan)."),
        Without("--tokens", *options.among(priced()).others),
    ] = None
    queries: Annotated[
        str | None, Option(help=f"Queries of each user, as 20/day, 3/hour or 2/minute (default: {QUERIES})."), PLANNED
    ] = None
    peak: Annotated[
        float | None,
        Option(min=0.042, max=1, help="Part of a day's queries in the busiest hour (default: 0.1)."),
        PLANNED,
    ] = None
    ahead: Annotated[
        int | None,
        Option(min=0, help="Queries of each user whose correlations are kept on disk (default: 0)."),
        PLANNED,
    ] = None
    within: Annotated[
        float | None,
        Option(
            min=0,
            help="Seconds that 95% of answers in the busiest hour may take (default: twice what one takes alone).",
        ),
        PLANNED,
    ] = None
    cores: Annotated[int | None, Option(min=1, help="Cores of each machine (default: 4)."), PLANNED] = None
    uplink: Annotated[
        float | None, Option(min=1, help="Mbit/s of each machine, each way (default: 10000)."), PLANNED
    ] = None
    utilisation: Annotated[
        float | None,
        Option(min=0.01, max=0.99, help="Part of the cores and the uplink in use in the busiest hour (default: 0.6)."),
        PLANNED,
    ] = None
    core_hour: Annotated[
        float | None,
        Option(min=0, help="Price of a core for an hour, in any money (default: 0.05, an example)."),
        PLANNED,
    ] = None
    gb: Annotated[
        float | None, Option(min=0, help="Price of 10^9 bytes sent, in any money (default: 0.08, an example)."), PLANNED
    ] = None

    def check(self) -> None:
        """Before anything slow. Errors: BlindformerError."""
        if self.users is None:
            return
        from ..reports.capacity import parse_queries

        parse_queries(self.queries or QUERIES)

    def plan(self, price: Estimate, grown: float) -> Capacity:
        """`grown`: bytes that pricing took at most. Errors: CapacityError."""
        from ..reports.capacity import Machines, Users, parse_queries, plan_capacity

        def given(**values: Any) -> dict[str, Any]:
            return {name: value for name, value in values.items() if value is not None}

        assert self.users is not None
        users = Users(self.users, parse_queries(self.queries or QUERIES), **given(peak=self.peak, ahead=self.ahead))
        uplink = None if self.uplink is None else self.uplink * 1e6
        rented = Machines(
            **given(cores=self.cores, utilisation=self.utilisation, core_hour=self.core_hour, gb=self.gb, uplink=uplink)
        )
        grown = max(0.0, grown - price.setup_bytes)  # the masked weights, which a server's sessions share
        return plan_capacity(price, users, rented, query_bytes=grown, **given(within=self.within))


def show_capacity(model: str, size: str, plan: str, price: Estimate, found: Capacity) -> None:
    out, users, seen, rented = console(), found.users, found.busiest, found.rented
    out.print(f"[bold]{model}[/]   {size}   plan {plan}   network {price.network}\n")
    out.print(
        f"{users.users:,} users, {users.queries:g} queries a day each: {users.a_day:,.0f} a day, "
        f"{users.a_second:.3g} a second in the busiest hour\n"
    )
    rows = [
        (
            party, need.machines, need.cores, need.workers, need.sessions, f"{need.memory_bytes / GB:.1f}",
            f"{need.peak_bits / MB:.0f}",
        )
        for party, need in (("server", found.server), ("dealer", found.dealer))
    ]  # fmt: skip
    headings = ("party", "machines", "cores", "--workers", "--sessions", "memory GB", "Mbit/s at peak")
    out.print(table(*headings, right=range(1, len(headings)), rows=rows))
    out.print("(but for the number of machines: of each machine)\n")
    needed = price.offline_bytes * users.a_day / GB
    disk = f"{found.disk_bytes / GB:,.0f} GB" if users.ahead else f"none; a day's queries made ahead: {needed:,.0f} GB"
    lines = {
        "network": f"{found.day_bytes / TB:,.2f} TB a day, of which servers and dealers send "
        f"{found.sent_bytes / TB:,.2f} TB; {found.first_bytes / TB:,.2f} TB of masked weights, once",
        "disk": f"of the servers, for correlations: {disk}",
        "money": f"{found.money_a_day:,.0f} a day, {found.money_a_thousand:.3g} for 1,000 queries, at "
        f"{rented.core_hour:g} a core-hour and {rented.gb:g} a GB sent, in any unit of money",
        "busiest": f"hour, with {found.server.machines - 1} of {found.server.machines} servers",
        "answers": f"p50 {seen.latency_p50_s:.2f} s, p95 {seen.latency_p95_s:.2f} s (bound {found.within_s:.2f} s), "
        f"p99 {seen.latency_p99_s:.2f} s; a query alone {found.alone_s:.2f} s",
        "waits": f"p50 {seen.wait_p50_s:.2f} s, p95 {seen.wait_p95_s:.2f} s, from asking until a worker is free",
        "in use": f"cores {seen.server_utilisation:.0%} at servers and {seen.dealer_utilisation:.0%} at dealers; the "
        f"servers' uplinks {seen.uplink_utilisation:.0%}",
    }
    out.print("\n".join(f"{name:<8} {text}" for name, text in lines.items()), soft_wrap=True)
