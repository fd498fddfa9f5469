"""make_private: the model's own face, the right answer, a report, and teaching errors."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec

import blindformer as bf
import pytest
import torch
from blindformer.models.calibration_texts import calibration_texts
from blindformer.parties.private import InsecureProtocol, PrivateError

TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


@pytest.fixture(scope="module")
def loaded(tiny_classifier):
    return bf.load(tiny_classifier)


@pytest.fixture(scope="module")
def batches(loaded):
    return [loaded.encode(text, 16) for text in TEXTS]


@pytest.mark.parametrize(("protocol", "where"), [("clear", "threads"), ("beaver", "threads"), ("beaver", "processes")])
def test_it_answers_like_the_model(loaded, batches, protocol, where):
    with bf.make_private(loaded.model, protocol=protocol, where=where, calibration=batches) as private:
        for batch in batches[:2]:
            found = private(**batch)
            with torch.no_grad():
                expected = loaded.model(**batch)
            assert type(found) is type(expected)
            torch.testing.assert_close(found.logits, expected.logits, atol=0.02, rtol=0)
        report = private.report
    assert report.protocol == protocol
    assert report.to_dict()["online_s"] > 0
    assert "known" not in str(report)
    if protocol == "beaver":
        assert report.rounds > 0
        assert sum(layer.online_bytes for layer in report.layers) == report.online_bytes
        assert sum(layer.offline_bytes for layer in report.layers) == report.offline_bytes
        estimate = bf.estimate(private.compiled, "wan")
        assert (estimate.rounds, estimate.online_bytes) == (report.rounds, report.online_bytes)
        assert estimate.offline_bytes == report.offline_bytes
        assert {"server", "dealer", "client", "public"} <= set(report.learned)
        assert "bert" in str(report)


def test_threads_may_make_private_models_at_once(loaded, batches, aside):
    """Tracing a model has the whole process's modules patched for a while."""
    example = dict(batches[0])

    def made():
        private = bf.make_private(copy.deepcopy(loaded.model), protocol="clear", calibration=batches, example=example)
        return private(**example).logits

    with torch.no_grad():
        expected = loaded.model(**example).logits
    for future in [aside(made) for _ in range(4)]:
        torch.testing.assert_close(future.result(), expected, atol=0.02, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("crypten") is None, reason="crypten is not installed")
@pytest.mark.parametrize(("protocol", "parties"), [("crypten", 3), ("crypten-insecure", 2)])
def test_it_answers_among_several_parties(loaded, batches, protocol, parties):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", InsecureProtocol)
        private = bf.make_private(loaded.model, protocol=protocol, parties=parties, calibration=batches)
    told = ["so it can read the data" in str(w.message) for w in said if w.category is InsecureProtocol]
    assert told == [True] * (protocol == "crypten-insecure")
    with private:
        found = private(**batches[0])
        pids = private._session.processes  # pyright: ignore
    with torch.no_grad():
        torch.testing.assert_close(found.logits, loaded.model(**batches[0]).logits, atol=0.02, rtol=0)
    assert private.report.protocol == protocol
    assert len(pids) == parties + (protocol == "crypten"), "the insecure one has no dealer of its own"


def test_one_example_is_thin_and_said_so(loaded, batches):
    with pytest.warns(UserWarning, match="calibrating on one example"):
        private = bf.make_private(loaded.model, protocol="clear", example=batches[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        private(**batches[0])  # compiled already


def test_wrong_wishes_are_explained(loaded, batches):
    with pytest.raises(bf.BlindformerError, match="choose one of"):
        bf.make_private(loaded.model, protocol="magic")
    with pytest.raises(bf.BlindformerError, match=r"^3 parties: protocol beaver has 2; use protocol crypten$"):
        bf.make_private(loaded.model, parties=3)
    with pytest.raises(bf.BlindformerError, match=r"^parties: 1 are named"):
        bf.make_private(loaded.model, protocol="crypten", parties=1)
    with pytest.raises(PrivateError, match="protocol crypten needs a process for each party"):
        bf.make_private(loaded.model, protocol="crypten", where="threads")
    with pytest.raises(PrivateError, match="choose processes or threads"):
        bf.make_private(loaded.model, where="cloud")
    private = bf.make_private(loaded.model, protocol="clear", calibration=batches)
    with pytest.raises(PrivateError, match=r"no calibration batch has these inputs' shapes .*input_ids \[1, 8\]"):
        private(**loaded.encode("good", 8))
    with pytest.raises(bf.BlindformerError, match="network moon"):
        bf.estimate(private.prepare(batches[0])[0], "moon")


def test_a_failing_thread_is_the_error_reported(loaded, batches):
    from blindformer.parties.threads import ThreadParties

    private = bf.make_private(loaded.model, protocol="clear", calibration=batches)
    compiled, _ = private.prepare(batches[0])
    compiled.weights.pop(next(iter(compiled.program.weight_shapes())))
    with pytest.raises(KeyError):
        ThreadParties(compiled, timeout=10)


@pytest.mark.timeout(300)
def test_minilm_sentences_stay_close():
    loaded = bf.load("minilm")
    calibration = [loaded.encode(text, 16, truncate=True) for text in calibration_texts(16)]
    with bf.make_private(loaded.model, where="threads", calibration=calibration) as private:
        batch = loaded.encode("nobody reads this text", 16)
        found = private(**batch).sentence_embedding
    with torch.no_grad():
        expected = loaded.model(**batch).sentence_embedding
    assert torch.cosine_similarity(found, expected).item() > 0.9995
