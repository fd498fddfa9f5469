"""A gateway in a thread, before tiny models whose parties are processes of this machine."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from blindformer.models.building import compile_folder
from blindformer.parties.config import load_settings
from blindformer.parties.gateway import serving
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually
from blindformer.tests.shared.once import folder_once

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


def stacks() -> str:
    """Where every thread is."""
    frames = sys._current_frames().items()
    return "\n".join(f"thread {number}\n{''.join(traceback.format_stack(frame))}" for number, frame in frames)


@contextmanager
def running(key: Path, models: dict[str, dict[str, Any]], **flags: Any) -> Iterator[Any]:
    """`url`, `key`, and `http`: a client with the key."""
    heard, servers = [], []
    settings = load_settings(
        None, **{"gateway.listen": "127.0.0.1:0", "gateway.key": key, "gateway.models": models, **flags}
    )
    thread = threading.Thread(target=serving.serve, args=(settings, heard.append), kwargs={"control": servers.append})
    thread.start()
    try:
        eventually(lambda: heard or not thread.is_alive(), "the gateway listens")
        secret = key.read_text().strip()
        with httpx.Client(base_url=heard[0].url, headers={"authorization": f"Bearer {secret}"}, timeout=60) as http:
            yield SimpleNamespace(url=heard[0].url, key=secret, http=http, server=servers[0])
    finally:
        for server in servers:
            server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), stacks()


@pytest.fixture(scope="session")
def sentence_folder(tiny_encoder) -> Path:
    return folder_once("sentences", partial(compile_folder, tiny_encoder, lengths=[16], calibration=TEXTS))


@pytest.fixture(scope="session")
def picture_folder(tiny_vision, pictures) -> Path:
    return folder_once("pictured", partial(compile_folder, tiny_vision, calibration=[pictures]))


@pytest.fixture(scope="session")
def gateway(chat_folder, sentence_folder, picture_folder, tmp_path_factory):
    """A language model `tiny`, an encoder `sentences`, and a classifier `pictures`."""
    models = {"tiny": chat_folder, "sentences": sentence_folder, "pictures": picture_folder}
    sections = {name: {"folder": folder, "server": "local"} for name, folder in models.items()}
    with running(tmp_path_factory.mktemp("gateway") / "key", sections) as running_gateway:
        eventually(lambda: running_gateway.http.get("/health").status_code == 200, "all parties have met")
        yield running_gateway


@pytest.fixture(scope="module")
def client(gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client
