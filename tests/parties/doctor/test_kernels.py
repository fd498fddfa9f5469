"""Whoever installs without a C compiler is told what it costs."""

from blindformer.parties.config import load_settings
from blindformer.parties.doctor.examine import _machine


def test_kernels_that_were_not_built_are_a_warning(monkeypatch, tmp_path):
    file = tmp_path / "blindformer.toml"
    file.write_text("")
    monkeypatch.setattr("blindformer.protocols.kernels.library.LEVEL", "torch")
    (check, *_) = _machine(load_settings(file), "client")
    assert (check.name, check.status, "C compiler" in check.fix) == ("kernels", "warning", True)
