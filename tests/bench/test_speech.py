"""A tiny measurement of speech that is written down: float32 hears what the private model hears."""

import numpy as np
from blindformer.bench import speech
from blindformer.models.loading.load import load
from blindformer.models.loading.media import pieces
from blindformer.tests.models.loading.test_sounds import write
from blindformer.tests.shared.speech import RATE, SECONDS, tiny_whisper


def test_a_longer_sound_than_the_window_is_compared_piece_by_piece(tmp_path, monkeypatch, measured):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(speech, "SLOTS", 8)
    (tmp_path / "sounds").mkdir()
    samples = np.random.default_rng(0).normal(0, 3000, 2 * SECONDS * RATE).astype(np.int16)
    samples[: SECONDS * RATE] //= 10
    write(tmp_path / "sounds" / "long.wav", samples, rate=RATE)
    own = tiny_whisper(tmp_path / "whisper")
    words = ("--sounds", tmp_path / "sounds", "--seconds", SECONDS, "--protocol", "clear")
    report = measured(speech, "--model", own, *words)
    heard = list(pieces(samples.astype(np.float32) / 2**15, RATE, SECONDS))
    loaded = load(own)
    texts = [loaded.model.generate(**loaded.encode_file(one), language="en", task="transcribe") for one in heard]
    texts = [loaded.task.words.decode(ids[0], skip_special_tokens=True).strip() for ids in texts]
    assert len(heard) > 1
    assert (report["sounds"], report["texts_in_the_clear"]) == (len(heard), texts)
    assert len(report["texts"]) == len(heard)
    assert report["encoder_rounds"] == 0 < report["encoder_online_s"]
