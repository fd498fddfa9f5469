"""Measured figures: no two results disagree, and none is older than the code unless the changelog says so."""

from __future__ import annotations

import subprocess
from argparse import Namespace

import pytest
from blindformer.bench import costs
from blindformer.tests.figures import CHANGELOG, RESULTS, admitted, exact, kept, named, stale

ROOT = CHANGELOG.parent
ENTRY = "- Products take half the rounds (changes figures: latency-128, costs).\n"


def git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def test_a_result_is_stale_from_an_entry_that_names_it_until_it_is_measured_anew():
    assert stale(ENTRY, {"latency-128": ["# Changelog\n"], "levels": [""]}) == {"latency-128"}
    assert stale(ENTRY, {"latency-128": [ENTRY]}) == set()
    assert stale(2 * ENTRY, {"costs": [ENTRY + ENTRY, ENTRY]}) == {"costs"}
    assert admitted("### Not yet\n\n- Old figures: latency-128, levels (a processor is missing).\n") == {
        "latency-128",
        "levels",
    }


def test_no_figure_is_older_than_the_code_unless_the_changelog_says_so():
    if (git("rev-parse", "--is-shallow-repository") or "true").strip() != "false":
        pytest.skip("no history here: nobody knows what the changelog said when a figure was measured")
    commits = {file.stem: {r["commit"].split("+")[0] for r in kept(file.name)} for file in RESULTS.glob("*.json*")}
    assert named(CHANGELOG.read_text(encoding="utf-8")) <= commits.keys(), (
        "the changelog names a result that is not kept"
    )
    texts = {commit: git("show", f"{commit}:CHANGELOG.md") or "" for some in commits.values() for commit in some}
    now = CHANGELOG.read_text(encoding="utf-8")
    old = stale(now, {name: [texts[commit] for commit in some] for name, some in commits.items()})
    assert old - admitted(now) == set(), (
        "measure these anew, or write `- Old figures: NAME` under Not yet in CHANGELOG.md"
    )
    assert admitted(now) - old == set(), "these are measured anew: take them out of `- Old figures:` in CHANGELOG.md"


def test_results_agree_in_what_is_exact():
    """Bytes and rounds of one model, plan and length, in whatever result they are."""
    old, known = admitted(CHANGELOG.read_text(encoding="utf-8")), {}
    for name, kind, figures in exact():
        if name not in old:
            first = known.setdefault(kind, (name, figures))
            assert figures == first[1], f"{name} and {first[0]} disagree about {kind}"
    assert len(known) > 8


@pytest.mark.slow
def test_the_code_costs_what_the_results_say():
    """So a change of bytes or rounds is seen before its figures are read."""
    now = costs.measure(Namespace(lengths=[32]), lambda doing: None)["rows"]
    assert now == [row for row in kept("costs.json")[0]["rows"] if row["length"] == 32]
