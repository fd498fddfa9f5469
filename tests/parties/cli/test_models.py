"""What commands leave in the cache: stored once, listed, and removed again."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_price_keeps_no_weights(call, report_of, known, tiny_classifier, tmp_path):
    """A model that is compiled is priced as it is; one that was priced is compiled when it is first asked."""

    def files(pattern):
        return sorted(file.name for file in (tmp_path / ".cache" / "blindformer" / "compiled").glob(pattern))

    def price(length):
        return report_of("estimate", tiny_classifier, "--length", length, *known)

    first = price(16)
    assert files("*/*") == ["helper"]
    assert [price(16)[name] for name in ("plan", "setup_bytes")] == [first[name] for name in ("plan", "setup_bytes")]
    assert len(files("*")) == 1
    assert call("run", tiny_classifier, "good", "--protocol", "clear", *known)[0] == 0  # of 16 tokens, too
    assert files("*/*") == ["client", "helper", "server"]
    assert price(16)["rounds"] == first["rounds"]
    assert files("*/*") == ["client", "helper", "server"]


def test_the_cache_is_listed_and_emptied(call, report_of, known, tiny_classifier, tmp_path):
    """What is said to be freed is what `models` had."""
    assert "is empty: models are compiled into it at their first use" in call("models")[1]
    assert call("models", "prune", "--all")[:2] == (0, "nothing to remove in ~/.cache/blindformer\n")
    for length in (8, 16):
        assert call("run", tiny_classifier, "good", "--protocol", "clear", "--length", length, *known)[0] == 0
    name = tiny_classifier.name
    listed = report_of("models")
    assert [(row["lengths"], row["problem"]) for row in listed["models"] if row["name"] == name] in (
        [([8], ""), ([16], "")],
        [([16], ""), ([8], "")],
    )
    assert 0 < sum(row["bytes"] for row in listed["models"] if row["name"] == name) <= listed["cache"]["bytes"]
    assert "MB in the cache (~/.cache/blindformer)" in call("models")[1]
    dry = report_of("models", "rm", name, "--dry-run")
    assert (len(dry["items"]), dry["removed"], dry["bytes"]) == (2, False, listed["cache"]["bytes"])
    assert report_of("models", "prune", "--older", "1d")["items"] == []
    assert "'soon' is no age" in " ".join(call("models", "prune", "--older", "soon")[2].split())
    first = report_of("models", "rm", name, "--length", 8)
    assert (len(first["items"]), first["removed"]) == (1, True)
    code, out, _ = call("models", "prune", "--all")
    assert code == 0
    assert "classification, plan faithful, 16" in out
    assert "freed" in out
    assert report_of("models")["cache"]["bytes"] == 0
