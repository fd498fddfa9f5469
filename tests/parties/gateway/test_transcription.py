"""Recordings at `/v1/audio/transcriptions`: the `openai` package's objects and errors, and the model's own words."""

from __future__ import annotations

import contextlib
import socket
import threading
import wave
from io import BytesIO
from typing import Any

import numpy as np
import openai
import pytest
from blindformer.errors import BlindformerError
from blindformer.models.generation.folder import compile_seq2seq_folder, found_or_compiled_as_it_is
from blindformer.models.loading.calibration_recordings import calibration_recordings
from blindformer.models.loading.load import load
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local
from blindformer.parties.config import load_settings
from blindformer.parties.gateway import app, model_pool
from blindformer.parties.gateway.model_pool import open_pools
from blindformer.parties.gateway.problems import GatewayError
from blindformer.parties.gateway.replies import MOST_AUDIO_BYTES
from blindformer.tests.parties.gateway.conftest import running
from blindformer.tests.shared.deployment import eventually
from blindformer.tests.shared.speech import RATE, SECONDS
from blindformer.tests.shared.tiny import tiny_marian
from transformers.models.whisper.tokenization_whisper import LANGUAGES


@pytest.fixture(scope="module")
def client(heard_folder, tmp_path_factory):
    sections = {"whisper": {"folder": heard_folder, "server": "local"}}
    with (
        running(tmp_path_factory.mktemp("gateway") / "key", sections) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client,
    ):
        yield client


def wav(samples, rate=RATE):
    content = BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())
    return "audio.wav", content.getvalue()


@pytest.fixture(scope="module")
def audio():
    return wav(calibration_recordings(1, RATE)[3])


def own_language(own, audio):
    """That the model itself finds the most likely."""
    loaded = load(own)
    whisper: Any = loaded.model
    number = whisper.detect_language(**loaded.encode_file(BytesIO(audio[1])))
    return LANGUAGES[loaded.task.words.decode(number).strip("<|>")]


@pytest.mark.slow
def test_a_recording_is_written_down_as_by_the_client_itself(client, heard_folder, audio):
    with open_here(find_local("clear"), heard_folder) as here:
        expected = here([BytesIO(audio[1])], language="en")[0]["text"].strip()
    reply = client.audio.transcriptions.create(model="whisper", file=audio, language="en")
    assert reply.text == expected
    assert reply.usage.seconds == 1
    assert reply.blindformer["sent_bytes"] > 0
    assert reply.blindformer["finish"] == "length"
    whole = client.audio.transcriptions.create(
        model="whisper", file=audio, language="en", response_format="verbose_json", temperature=0
    )
    assert (whole.text, whole.language, whole.duration) == (expected, "english", 1.0)
    heard = client.audio.transcriptions.create(model="whisper", file=audio, response_format="verbose_json")
    assert heard.language == own_language(heard_folder.parent / "model", audio)
    plain = client.audio.transcriptions.create(model="whisper", file=audio, language="en", response_format="text")
    assert plain == f"{expected}\n"


@pytest.fixture(scope="module")
def long():
    return wav(np.concatenate(calibration_recordings(1, RATE, 2 * SECONDS + 1)))


def test_a_longer_recording_than_the_model_hears_is_heard_in_pieces(client, heard_folder, long):
    reply = client.audio.transcriptions.create(model="whisper", file=long, language="en")
    assert reply.usage.seconds == 2 * SECONDS + 1
    with open_here(find_local("clear"), heard_folder) as here:
        pieces = here.part.task.pieces(BytesIO(long[1]))
        heard = [result for _, result in here.stream(pieces, options={"language": "en"})]
    assert len(pieces) > 2
    assert reply.text == " ".join(filter(None, (result.value["text"].strip() for result in heard)))
    assert reply.blindformer["passes"] == sum(result.passes for result in heard) > 2 * len(pieces)
    assert [result.finish for result in heard] == ["length"] * len(pieces)


@pytest.mark.parametrize("protocol", ["beaver", "clear"])
def test_who_leaves_is_not_waited_for(heard_folder, long, protocol):
    with open_here(find_local(protocol), heard_folder, "local") as here:
        ((_, left),) = here.stream([BytesIO(long[1])], options={"language": "en"}, stopped=lambda: True)
    assert (left.passes, left.finish) == (2, "interrupted")  # of the audio's first piece, and of a token


def test_a_model_that_translates_has_no_route(tmp_path):
    own, key = tiny_marian(tmp_path / "marian"), tmp_path / "key"
    with pytest.raises(BlindformerError, match="writes about a text, which the gateway has no route for; use run"):
        found_or_compiled_as_it_is(own, tmp_path / "cache", plan="faithful")
    folder = compile_seq2seq_folder(own, tmp_path / "out", lengths=[8], slots=8, sizes=(1,), calibration=["a"])
    settings = load_settings(
        None, **{"gateway.key": key, "gateway.models": {"m": {"folder": folder, "server": "local"}}}
    )
    with pytest.raises(GatewayError, match="writes about a text, which the gateway has no route for; use query"):
        open_pools(settings)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"file": ("a.wav", b"RIFF")}, "invalid_audio", "file: the audio: is no WAV file that can be read"),
        ({"language": "xx"}, "refused_by_model", "language 'xx': is not known to the model; choose one of de, en"),
        (
            {"prompt": "Hello"},
            "unsupported_parameter",
            "prompt: is not supported here; a recording is written down without",
        ),
        ({"temperature": 0.5}, "unsupported_parameter", "temperature: is not supported here; the most likely words"),
        ({"response_format": "srt"}, "invalid_value", "response_format: should be 'json', 'text' or 'verbose_json'"),
        ({"timestamp_granularities": ["word"]}, "unsupported_parameter", "no times are computed; leave it out"),
        ({"model": "other"}, "model_not_found", "model 'other': is not offered here; give one of whisper"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(client, audio, options, code, words):
    with pytest.raises(openai.APIStatusError) as raised:
        client.audio.transcriptions.create(**{"model": "whisper", "file": audio, **options})
    assert raised.value.code == code
    assert words in raised.value.message
    assert raised.value.status_code in (400, 404)


def test_a_small_file_that_would_grow_is_refused(client, monkeypatch):
    """24 MB at 1,000 samples a second are seven hours, and 1.6 GB at the model's rate. A job finds that out."""
    threads, decode = [], model_pool.open_audio

    def watched(*args, **options):
        threads.append(threading.current_thread().name)
        return decode(*args, **options)

    monkeypatch.setattr(model_pool, "open_audio", watched)
    content = BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 1, 1000, 0, "NONE", ""))
        file.writeframes(bytes(24 << 20))
    with pytest.raises(openai.BadRequestError, match="file: the audio: lasts more than 60 minutes") as raised:
        client.audio.transcriptions.create(model="whisper", file=("a.wav", content.getvalue()))
    assert raised.value.code == "invalid_audio"
    assert [name.startswith("gateway") for name in threads] == [True]


def test_bodies_have_so_much_memory_and_no_more(client, monkeypatch):
    """Uploads that are under way count with what they announce, and give it back."""
    monkeypatch.setattr(app, "MOST_HELD", 2 * MOST_AUDIO_BYTES)
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.api_key}\r\n"
        f"Content-Length: {MOST_AUDIO_BYTES}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    address = (client.base_url.host, client.base_url.port)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(address))
            sock.sendall(head.encode())
            assert b"100" in sock.recv(1000)  # it is counted

        def refusal():
            with pytest.raises(openai.APIStatusError) as raised:
                client.audio.transcriptions.create(model="whisper", file=("a.wav", b"RIFF"))
            return raised.value

        error = refusal()
        assert "others are sending as much as the gateway holds" in error.message
        assert (error.status_code, error.response.headers["retry-after"]) == (503, "5")
    eventually(lambda: refusal().code == "invalid_audio", "there is room again")


def test_a_body_that_is_no_form_is_refused(client):
    with pytest.raises(openai.APIStatusError, match="the body is not a form; send it as multipart/form-data"):
        client.post("/audio/transcriptions", body={"model": "whisper"}, cast_to=object)
