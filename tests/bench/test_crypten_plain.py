"""Plain CrypTen on one tiny layer: right answers, honest counters, no process left behind."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import pytest
import torch
from blindformer.tests.patience import PATIENCE

pytest.importorskip("transformers")
if importlib.util.find_spec("crypten") is None:  # importorskip would fail: it does not import without our shim
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.bench.crypten_plain import CryptenResult, run_crypten

SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**SHAPE, vocab_size=10, max_position_embeddings=8, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, mask = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        return model.embeddings(ids), mask, model(ids, attention_mask=mask).last_hidden_state


@pytest.fixture(scope="module")
def result(model: Any, inputs: tuple[torch.Tensor, ...]) -> CryptenResult:
    return run_crypten(model.state_dict(), SHAPE, inputs[0], inputs[1], timeout=PATIENCE)


def children() -> list[psutil.Process]:
    """Processes that were spawned here and are still there."""
    spawned = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ends as it is asked
            spawned += [process] if any("spawn_main" in word for word in process.cmdline()) else []
    return spawned


def test_output_is_the_models(result: CryptenResult, inputs: tuple[torch.Tensor, ...]) -> None:
    # Measured 0.004: CrypTen's inverse square root and exponential, not the 16 bits, set it.
    assert (result.output - inputs[2]).abs().max() < 0.03


def test_the_mask_counts(model: Any, result: CryptenResult, inputs: tuple[torch.Tensor, ...]) -> None:
    unmasked = run_crypten(model.state_dict(), SHAPE, inputs[0], timeout=PATIENCE)
    torch.testing.assert_close(unmasked.output[0], result.output[0], atol=1e-2, rtol=0)
    assert (unmasked.output[1] - result.output[1]).abs().max() > 0.3
    assert unmasked.rounds == result.rounds


def test_counters_agree(result: CryptenResult) -> None:
    # gloo frames each reduction with about a kilobyte, which on shapes this small is most of the traffic.
    assert result.counted_bytes < result.bytes_both_ways < result.counted_bytes + 3000 * result.rounds
    assert result.bytes_both_ways < result.loopback_bytes
    assert result.rounds > 100
    assert result.seconds > 0
    assert result.peak_rss_mb > 50


def test_a_failing_party_is_one_line_and_leaves_nothing(model: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"^crypten failed: party \d: \w+Error: .+$") as caught:
        run_crypten(model.state_dict(), SHAPE | {"num_attention_heads": 3}, inputs[0], timeout=PATIENCE)
    assert "\n" not in str(caught.value)
    assert not children()


def test_a_late_answer_is_stopped(model: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer, most = pool.submit(run_crypten, model.state_dict(), SHAPE, inputs[0], timeout=0.2), 0
        while not answer.done():
            most = max(most, len(children()))
    with pytest.raises(RuntimeError, match=r"no answer within 0\.2 s"):
        answer.result()
    assert most == 2
    assert not children()


def test_missing_weights_are_refused(inputs: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="16 tensors; the weights hold 0"):
        run_crypten({}, SHAPE, inputs[0])
