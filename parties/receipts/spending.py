"""CPU time and energy that a process spends, from one moment on.

Energy is read from RAPL, which counts that of whole processor packages: this process has the share of it that it has of
the processors' busy time. Linux lets only root read RAPL, because fine readings tell of keys (PLATYPUS, CVE-2020-8694):
a service reports it only where its operator opened the files to it, in whole joules, and once for each answered query
at most.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import BaseModel, ConfigDict, Field

POWERCAP = Path("/sys/class/powercap")
Spent = Annotated[int, Field(ge=0, lt=2**40)]
MOST_WATTS = 400.0  # of a package: over so long a time that its counter may have wrapped twice, nothing is read


class Consumption(BaseModel):
    """`joules`: None where RAPL cannot be read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    cpu_ms: Spent
    joules: Spent | None = None


class Spending:
    """Counts from now on. `children`: processes that this one started and that have ended count, too. `powercap`: where
    the system shows RAPL."""

    def __init__(self, children: bool = False, powercap: Path = POWERCAP) -> None:
        self._children, self._powercap, self._started = children, powercap, time.monotonic()
        self._cpu, self._busy, self._counters = self._cpu_seconds(), _busy_seconds(), _counters(powercap)

    def so_far(self) -> Consumption:
        cpu = self._cpu_seconds() - self._cpu
        return Consumption(cpu_ms=round(1000 * cpu), joules=self._joules(cpu))

    def _cpu_seconds(self) -> float:
        times = os.times()
        return time.process_time() + (times.children_user + times.children_system if self._children else 0.0)

    def _joules(self, cpu: float) -> int | None:
        now, longest = _counters(self._powercap), MOST_WATTS * (time.monotonic() - self._started)
        if not now or now.keys() != self._counters.keys() or any(longest > most / 1e6 for _, most in now.values()):
            return None
        spent = sum((value - self._counters[zone][0]) % most for zone, (value, most) in now.items()) / 1e6
        return round(spent * min(1.0, cpu / max(_busy_seconds() - self._busy, cpu, 1e-9)))


def _counters(powercap: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each processor package, and where its counter wraps. Empty if any cannot be read."""
    try:
        zones = [zone for zone in powercap.iterdir() if re.fullmatch(r"intel-rapl:\d+", zone.name)]
        packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        return {zone.name: (_number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")) for zone in packages}
    except (OSError, ValueError):
        return {}


def _number(file: Path) -> int:
    return int(file.read_text())


def _busy_seconds() -> float:
    """Of all processors of this machine together."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
