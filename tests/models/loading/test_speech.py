"""What a model of speech hears at once: a window of its own, and of a long recording one piece after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blindformer.models.loading.calibration_recordings import calibration_recordings
from blindformer.models.loading.huggingface import LoadError
from blindformer.models.loading.load import load
from blindformer.models.loading.media import pieces
from blindformer.models.loading.speech import windowed
from blindformer.tests.shared.speech import RATE, SECONDS, tiny_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def test_a_shorter_window_is_heard_as_the_beginning_of_a_longer_one(folder):
    """A layer without attention has the same states at the same places."""
    whole = load(folder)
    torch.nn.init.zeros_(whole.model.get_encoder().layers[0].self_attn.out_proj.weight)
    cut = windowed(whole, 1)
    audio = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    with torch.no_grad():
        long, short = (
            one.model.get_encoder()(one.encode_file(audio)["input_features"]).last_hidden_state for one in (whole, cut)
        )
    assert cut.model.get_input_embeddings().weight is whole.model.get_input_embeddings().weight
    assert (whole.task.feature_extractor.chunk_length, cut.task.feature_extractor.chunk_length) == (SECONDS, 1)
    assert short.shape[1] * SECONDS == long.shape[1]
    torch.testing.assert_close(short[:, :-2], long[:, : short.shape[1] - 2], atol=1e-2, rtol=1e-2)


def test_a_window_that_cannot_be_is_one_line(folder, tiny_encoder):
    loaded = load(folder)
    assert windowed(loaded, None).task.feature_extractor.chunk_length == SECONDS
    for seconds in (0, SECONDS + 1):
        with pytest.raises(LoadError, match=f"^seconds {seconds}: .* hears {SECONDS} at once; give 1 to as many"):
            windowed(loaded, seconds)
    reader = load(tiny_encoder)
    assert windowed(reader, None) is reader
    with pytest.raises(LoadError, match=r"has no window of audio that can be cut; leave seconds out"):
        windowed(reader, 1)


def test_a_long_recording_is_cut_where_nobody_speaks():
    audio = np.random.default_rng(0).standard_normal(12 * RATE).astype(np.float32)
    for silence in (3.9, 8.1):
        audio[int(silence * RATE) : int((silence + 0.1) * RATE)] = 0
    parts = list(pieces(audio, RATE, 5))
    assert np.concatenate(parts) == pytest.approx(audio)
    assert max(map(len, parts)) <= 5 * RATE
    assert [len(part) / RATE for part in parts] == pytest.approx([3.95, 4.2, 3.85], abs=0.05)
    assert [len(part) for part in pieces(audio[:RATE], RATE, 5)] == [RATE]


def test_recordings_to_calibrate_on_are_alike_each_time_and_differ_from_each_other():
    recordings = calibration_recordings(2, RATE)
    assert all(
        np.array_equal(one, other) for one, other in zip(recordings, calibration_recordings(2, RATE), strict=True)
    )
    assert {audio.shape for audio in recordings} == {(2 * RATE,)}
    loudness = [float(np.abs(audio).max()) for audio in recordings]
    assert len(set(loudness)) == len(recordings)
    assert all(0.05 < most < 1.5 for most in loudness)
    spectrum = np.abs(np.fft.rfft(np.concatenate(recordings))) ** 2
    hertz = np.fft.rfftfreq(len(recordings) * 2 * RATE, 1 / RATE)
    assert spectrum[hertz < 4000].sum() > 0.9 * spectrum.sum()  # as in speech


def test_how_long_a_recording_is_does_not_show_in_what_the_model_is_given(folder):
    task, (audio,) = load(folder).task, calibration_recordings(SECONDS, RATE, 1)
    shapes = {
        tuple(task.encode_file(piece)["input_features"].shape)
        for length in (RATE // 10, RATE, SECONDS * RATE)
        for piece in task.pieces(audio[:length])
    }
    assert len(shapes) == 1
