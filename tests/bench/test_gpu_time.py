"""A tiny model's seconds on a GPU: reckoned from work that is counted, and in the order that it must have."""

import pytest
from blindformer.bench import gpu_time
from blindformer.bench.workloads import build
from blindformer.models.compile import compile
from blindformer.models.program.pricing import price
from blindformer.tests.shared.tiny import tiny_llama


@pytest.fixture(scope="module")
def report(measured):
    return measured(gpu_time, "--model", "bert-tiny", "--length", 8, "--plan", "fast")


def test_products_are_those_of_the_program(report):
    """By bytes: of a weight of 8 bits as many as numbers of the input have bytes; elsewhere of its mask 36, at the
    client and at the dealer alike."""
    work = build("bert-tiny", 8, queries=1)
    compiled = compile(work.model, work.calibration, "fast", outputs=[gpu_time.OUTPUT], name=work.name)
    costs, counts = price(compiled.program), report["work"]
    assert report["rounds"] == costs.rounds
    assert counts["client offline"]["of_bytes"] == counts["dealer offline"]["of_bytes"] > 0
    assert 0 < counts["server online"]["of_bytes"] < counts["client offline"]["of_bytes"]
    assert (counts["server online"]["up"], counts["server online"]["down"]) == (costs.up, costs.down)
    assert counts["dealer offline"]["down"] == costs.dealt_bytes


@pytest.fixture(scope="module")
def of_tokens(measured, tmp_path_factory):
    return measured(gpu_time, "--model", tiny_llama(tmp_path_factory.mktemp("model")), "--cache", 4)


def test_a_token_takes_less_of_the_link_than_the_dealer_has_for_it(of_tokens):
    """Rounds and bytes are means over passes of one token, which are alike."""
    counts = of_tokens["work"]
    assert of_tokens["cache"] == 4
    assert of_tokens["rounds"] == int(of_tokens["rounds"]) > 0
    assert of_tokens["online_bytes"] == counts["server online"]["up"] + counts["server online"]["down"]
    assert 0 < of_tokens["online_bytes"] < counts["dealer offline"]["up"]


@pytest.mark.parametrize("which", ["report", "of_tokens"])
def test_a_phase_takes_no_less_than_its_orders(request, which):
    report = request.getfixturevalue(which)
    for name, gpu in gpu_time.GPUS.items():
        estimate = report["estimates"][name]
        for party, counts in report["work"].items():
            assert estimate[f"{party.replace(' ', '_')}_s"] >= counts["operations"] * gpu.order > 0
        assert estimate["online_s"] > max(estimate["server_online_s"], estimate["client_online_s"])
    assert {f"{party.replace(' ', '_')}" for party in report["work"]} <= report["on_core"].keys()
