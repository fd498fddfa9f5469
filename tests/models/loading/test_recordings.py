"""Models of speech: WAV files in, labels or features out; what is no audio that they take is one line."""

import tracemalloc
import wave
from io import BytesIO

import numpy as np
import pytest
import torch
import transformers as tf
from blindformer.models.loading import media
from blindformer.models.loading.answers import read_answer
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.models.loading.media import media_files, open_audio

RATE = 16000
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": [8, 8], "conv_stride": [10, 8], "conv_kernel": [10, 8], "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
LABELS = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}


def write(path, samples, rate=RATE, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def recordings(tmp_path):
    """Three recordings of 0.05 s, in a folder."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        write(folder / f"{number}.wav", generator.integers(-20000, 20000, 800).astype(np.int16))
    return folder


def saved(folder, model, extractor):
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def by_label(rows):
    return {row["label"]: row["score"] for row in rows}


def wav2vec(labels: bool, folder):
    torch.manual_seed(0)
    config = tf.Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **POSITIONS, **LABELS, classifier_proj_size=8)
    cls = tf.Wav2Vec2ForSequenceClassification if labels else tf.Wav2Vec2Model
    return saved(folder, cls(config), tf.Wav2Vec2FeatureExtractor(sampling_rate=RATE))


def spectrum(folder):
    torch.manual_seed(0)
    config = tf.ASTConfig(
        **SIZES, **LABELS, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=16
    )
    extractor = tf.ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=16)
    return saved(folder, tf.ASTForAudioClassification(config), extractor)


def test_labels_and_features_are_what_the_model_gives(tmp_path, recordings):
    file = recordings / "0.wav"
    for make in (lambda folder: wav2vec(True, folder), spectrum):
        loaded = load(make(tmp_path / make.__name__))
        assert (loaded.kind, loaded.task.pipeline) == ("audio", "audio-classification")
        inputs = loaded.encode_file(file)
        with torch.no_grad():
            outputs = dict(loaded.model(**inputs))
        rows = read_answer(loaded.task, outputs, inputs)
        scores = torch.softmax(outputs["logits"][0], -1)
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(
            {"yes": float(scores[0]), "no": float(scores[1])}
        )
    loaded = load(wav2vec(False, tmp_path / "features"))
    assert loaded.task.pipeline == "audio-feature-extraction"
    inputs = loaded.encode_file(file)
    with torch.no_grad():
        outputs = dict(loaded.model(**inputs))
    features = read_answer(loaded.task, {"last_hidden_state": outputs["last_hidden_state"]}, inputs)
    assert torch.tensor(features).shape == outputs["last_hidden_state"].shape


def test_silence_follows_a_short_recording_and_a_long_one_is_refused(tmp_path, recordings):
    loaded = load(wav2vec(True, tmp_path / "model"))
    assert loaded.task.samples([recordings / "0.wav"]) == 800
    long = loaded.encode_file(recordings / "0.wav", 900)["input_values"]
    assert long.shape == (1, 900)
    assert long[0, 810:].std() < 1e-6
    with pytest.raises(InputError, match=r"lasts 0.05 s, the model takes 0.03 s here: cut it, or split it"):
        loaded.encode_file(recordings / "0.wav", 400)


@pytest.mark.parametrize(("width", "kind", "scale"), [(1, np.uint8, 128), (2, np.int16, 2**15), (4, np.int32, 2**31)])
def test_samples_of_every_width_are_read(tmp_path, width, kind, scale):
    middle = 128 if width == 1 else 0
    stereo = (np.array([0.5, -0.5, 0.25, 0.75]) * scale + middle).astype(kind)
    samples = open_audio(write(tmp_path / "a.wav", stereo, width=width, channels=2), RATE)
    assert samples == pytest.approx([0.0, 0.5], abs=1e-4)
    assert open_audio(np.ones(3), RATE).dtype == np.float32


def test_samples_of_24_bits_are_read(tmp_path):
    parts = b"".join(int(value * 2**23).to_bytes(3, "little", signed=True) for value in (0.5, -0.5, 0.25, -1.0))
    file = write(tmp_path / "a.wav", np.frombuffer(parts, np.uint8), width=3)
    assert open_audio(BytesIO(file.read_bytes()), RATE) == pytest.approx([0.5, -0.5, 0.25, -1.0])


@pytest.mark.parametrize("own", [8000, 11025, 22050, 44100, 48000])
def test_a_recording_of_another_rate_is_resampled(own):
    """A tone that both rates can carry stays as it is; one that the model's rate cannot carry is gone."""

    def tone(hertz, rate):
        return np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate)

    ours = open_audio({"raw": tone(440, own), "sampling_rate": own}, RATE)
    expected = tone(440, RATE)
    assert ours.shape == pytest.approx(expected.shape, abs=1)
    inside = slice(200, 3800)
    assert ours[inside] == pytest.approx(expected[inside], abs=2e-3)
    if own > 2 * 11000:
        assert np.abs(open_audio({"raw": tone(11000, own), "sampling_rate": own}, RATE)[inside]).max() < 2e-3


@pytest.mark.parametrize("own", [1000, 768_000])
def test_a_recording_takes_little_memory_beside_its_samples(own):
    """Whatever its rate: at 768,000 a second each sample of the model's is a sum of 1,600."""
    tracemalloc.start()
    try:
        samples = open_audio({"raw": np.ones(own), "sampling_rate": own}, 16000)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert samples.shape == (16000,)


def test_a_recording_is_bounded_before_it_is_resampled(tmp_path, monkeypatch):
    """The file's own samples and those that they become; a header may announce more than there is."""
    monkeypatch.setattr(media, "_resampled", lambda *_: pytest.fail("it was resampled"))
    slow = write(tmp_path / "slow.wav", np.zeros(2000, np.uint8), width=1, rate=1000)
    fast = write(tmp_path / "fast.wav", np.zeros(2000, np.uint8), width=1, rate=32000)
    for audio in (slow, fast, {"raw": np.zeros(2000), "sampling_rate": 1000}):
        with pytest.raises(InputError, match=r"lasts more than [\d.]+ minutes, which is the most; cut it into several"):
            open_audio(audio, 16000, most=1999)
    streamed = bytearray(slow.read_bytes())
    streamed[40:44] = b"\xff" * 4  # the length of what a program wrote as it came
    monkeypatch.setattr(media, "_resampled", lambda samples, *_: samples)
    assert open_audio(BytesIO(bytes(streamed)), 16000, most=32000).shape == (2000,)


def test_what_is_no_recording_is_one_line(tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    (tmp_path / "empty").mkdir()
    silent = write(tmp_path / "silent.wav", np.zeros(0, np.int16))
    slow, fast = (write(tmp_path / f"{rate}.wav", np.ones(9, np.int16), rate=rate) for rate in (1, 2_000_000_000))
    cases = [
        (lambda: open_audio(tmp_path / "none.wav", RATE), "there is no such file"),
        (lambda: open_audio(bad, RATE), "is no WAV file that can be read"),
        (lambda: open_audio(BytesIO(b"RIFF"), RATE), "^the audio: is no WAV file that can be read"),
        (lambda: open_audio({"raw": np.ones(3), "sampling_rate": 0}, RATE), "sampling_rate 0: is no number"),
        (lambda: open_audio({"raw": np.ones(3), "sampling_rate": 1}, RATE), "sampling_rate 1: is no number"),
        (lambda: open_audio(slow, RATE), "has samples of 16 bits, 1 a second; save it as WAV of 16 bits, 16000"),
        (lambda: open_audio(fast, RATE), "has samples of 16 bits, 2000000000 a second"),
        (lambda: open_audio(silent, RATE), "holds no samples"),
        (lambda: open_audio(np.zeros((2, 2)), RATE), "a WAV file's path or an array of samples"),
        (lambda: media_files("audio", [tmp_path / "empty"]), r"holds no recordings \(.wav\)"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()


def test_a_compiled_folder_takes_recordings_up_to_its_longest(tmp_path, recordings):
    """From a file to private labels, as the model gives them in the clear."""
    import blindformer as bf

    folder = wav2vec(True, tmp_path / "model")
    bf.compile_folder(folder, tmp_path / "compiled", calibration=[recordings])
    short = write(tmp_path / "short.wav", np.random.default_rng(9).integers(-20000, 20000, 700).astype(np.int16))
    long = write(tmp_path / "long.wav", np.full(1600, 9000, np.int16))
    with bf.Client("local", folder=tmp_path / "compiled") as client:
        (_, rows), (_, failed) = sorted(client.stream([short, long]), key=lambda pair: pair[0])
    loaded = load(folder)
    with torch.no_grad():
        scores = torch.softmax(loaded.model(**loaded.encode_file(short, 800)).logits[0], -1)
    assert rows.error is None
    assert by_label(rows.value) == pytest.approx({"yes": float(scores[0]), "no": float(scores[1])}, abs=0.01)
    assert "lasts 0.10 s, the model takes 0.05 s here" in str(failed.error)
