"""Whoever installs without a C compiler is told what it costs."""

from blindformer.parties.config import Settings
from blindformer.parties.doctor.examine import _machine


def test_kernels_that_were_not_built_are_a_warning(monkeypatch):
    monkeypatch.setattr("blindformer.protocols.kernels.library.LEVEL", "torch")
    (check, *_) = _machine(Settings(), "client")
    assert (check.name, check.status, "C compiler" in check.fix) == ("kernels", "warning", True)
