"""Whoever has no fast kernels is told what it costs."""

from blindformer.parties.config import load_settings
from blindformer.parties.doctor.examine import _machine


def test_a_level_without_fast_kernels_is_a_warning(monkeypatch, tmp_path):
    file = tmp_path / "blindformer.toml"
    file.write_text("")
    for level, status in (("x86-64-v3", "good"), ("x86-64", "warning"), ("torch", "warning")):
        monkeypatch.setattr("blindformer.levels.level", lambda level=level: level)
        monkeypatch.setattr("blindformer.parties.doctor.examine.level", lambda level=level: level)
        (check, *_) = _machine(load_settings(file), "client")
        assert (check.name, check.status, check.figures["level"]) == ("kernels", status, level)
        assert bool(check.fix) == (status == "warning")
