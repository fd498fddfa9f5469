"""Energy is measured where the machine shows it to this process, and only then."""

from __future__ import annotations

from pathlib import Path

from blindformer.parties.receipts import statement
from blindformer.parties.receipts.statement import Spending


def package(powercap: Path, number: int, joules: float, name: str = "package-0", most: float = 1000.0) -> None:
    zone = powercap / f"intel-rapl:{number}"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text(f"{round(most * 1e6)}\n")


def work() -> None:
    for _ in range(10**6):
        pass


def test_a_machine_without_counters_is_measured_in_cpu_seconds(tmp_path):
    spent = Spending(powercap=tmp_path / "nothing")
    work()
    assert spent.so_far().cpu_ms > 0
    assert spent.so_far().joules is None


def test_this_process_has_its_share_of_the_packages_energy(tmp_path, monkeypatch):
    """Of two packages, one of whose counters wraps; what the whole board takes is not counted again."""
    package(tmp_path, 0, 990.0)
    package(tmp_path, 1, 5.0, "package-1")
    package(tmp_path, 2, 0.0, "psys")
    busy = iter((100.0, 100.0 + 1e6))
    monkeypatch.setattr(statement, "_busy_seconds", lambda: next(busy))
    alone = iter((0.0, 2e5))
    monkeypatch.setattr(Spending, "_cpu_seconds", lambda self: next(alone))
    spent = Spending(powercap=tmp_path)
    package(tmp_path, 0, 40.0)
    package(tmp_path, 1, 55.0, "package-1")
    package(tmp_path, 2, 500.0, "psys")
    assert spent.so_far().joules == 20  # a fifth of 50 and 50


def test_a_counter_that_may_have_wrapped_twice_is_not_believed(tmp_path):
    package(tmp_path, 0, 1.0, most=1e-9)
    spent = Spending(powercap=tmp_path)
    work()
    assert spent.so_far().joules is None
