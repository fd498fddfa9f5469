"""Seconds, bytes and rounds of speech written down in private, and whether its words are float32's.

    python -m bench.speech --weights public --seconds 5 --format json
    python -m bench.speech --protocol clear --sounds recordings

README.md says what each figure means.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from blindformer.models.cached import cached
from blindformer.models.delegated.building import found_or_delegated
from blindformer.models.generation.folder import compile_seq2seq_folder
from blindformer.models.loading.load import load
from blindformer.models.loading.media import media_files
from blindformer.models.loading.speech import SECONDS, windowed
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local
from blindformer.parties.client.sessions import Writer
from blindformer.parties.config import load_settings
from blindformer.parties.registry import DEFAULT, find, protocol_for, talking
from blindformer.parties.session.online import peak_rss_mb
from rich.table import Table

from .generation import PassMeter
from .harness import PLANS, BenchError, Report, Say, add_weights, apart, carry_out, grid, megabytes, parser, seconds

SENTENCES = (
    "The patient has no allergies and takes two tablets a day.",
    "Please send the report to the hospital before noon.",
    "The meeting was moved to Thursday afternoon.",
    "Nobody should listen to this recording but me.",
    "We will sign the contract at the end of March.",
    "I would like to make an appointment with the doctor.",
    "Can you tell me what the weather will be tomorrow?",
    "There is a strong smell of gas in the kitchen.",
    "Good morning, how can I help you?",
    "The children are playing football in the garden.",
)
"""That espeak-ng speaks, in less than five seconds each."""
_LANGUAGE = "en"
_COSTS = ("online_s", "offline_s", "online_bytes", "offline_bytes", "rounds")  # as `Spent` has them
SLOTS = 64  # tokens of an answer


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Compile the model unless it is in the user's cache, then write down each sound, or each piece of one. Errors:
    BlindformerError."""
    torch.set_num_threads(1)
    say("compile, unless it is in the cache: some minutes")
    chosen.protocol = protocol_for(chosen.protocol, chosen.weights)
    if find(chosen.protocol).prepare:
        home = load_settings(None).client.cache.expanduser()
        folder = apart(found_or_delegated, chosen.model, home, plan=chosen.plan, seconds=chosen.seconds)
    else:
        folder = apart(_compiled, chosen.model, chosen.plan, chosen.weights, chosen.seconds, SLOTS)
    with tempfile.TemporaryDirectory() as place:
        sounds = media_files("sound", [chosen.sounds]) if chosen.sounds else _spoken(Path(place))[: chosen.count]
        meter, runs = PassMeter(), list[Report]()
        with open_here(find_local(chosen.protocol), folder, timeout=chosen.timeout) as client:
            writer = Writer(client.sessions, client.part, meter)
            heard = [piece for sound in sounds for piece in client.part.task.pieces(sound)]  # each in one window
            for number, sound in enumerate(heard):
                say(f"private: sound {number + 1} of {len(heard)}")
                meter.spent.passes.clear()
                reply, _ = writer.write(client.part.encode(sound), language=_LANGUAGE)
                costs = meter.spent.per_token(len(reply.tokens) + 1, reply.prompt_passes)
                source = dict(zip((f"encoder_{name}" for name in _COSTS), meter.spent.passes[0], strict=True))
                whole = {"wall_s": reply.seconds, "text": reply.text.strip(), "tokens": len(reply.tokens)}
                runs.append({**whole, **source, **costs})
            memory = max(meter.memory, peak_rss_mb())
        say("compare")
        expected = _in_the_clear(chosen.model, chosen.seconds, heard)
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "text"}
    return {
        **{name: getattr(chosen, name) for name in ("model", "plan", "protocol", "seconds")},
        "weights_are": chosen.weights,
        "sounds": len(heard),
        **figures,
        "same_words": sum(_words(run["text"]) == _words(text) for run, (text, _) in zip(runs, expected, strict=True)),
        "texts": [run["text"] for run in runs],
        "texts_in_the_clear": [text for text, _ in expected],
        "plaintext_s": statistics.median(taken for _, taken in expected),
        "peak_rss_mb": memory,
        "tls": not find(chosen.protocol).reference,
        "threads": 1,
    }


def _compiled(model: str, plan: str, weights: str, window: int, slots: int) -> Path:
    options: dict[str, Any] = {"weights": weights, "seconds": window, "slots": slots}
    cache = load_settings(None).client.cache.expanduser()

    def make(folder: Path, plan: Any, kept: Any) -> Path:
        return compile_seq2seq_folder(model, folder, plan=plan, kept=kept, **options)

    return cached(model, cache, make, plan, {"bench": "speech", **options})


def _spoken(folder: Path) -> list[Path]:
    """The sentences, by a voice of this machine."""
    if shutil.which("espeak-ng") is None:
        raise BenchError("espeak-ng: is not installed; install it (Debian: espeak-ng), or give --sounds FOLDER")
    files = [folder / f"{number}.wav" for number in range(len(SENTENCES))]
    for file, sentence in zip(files, SENTENCES, strict=True):
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(file), sentence], check=True)
    return files


def _in_the_clear(name: str, window: int, sounds: Sequence[Any]) -> list[tuple[str, float]]:
    """What the float32 model hears of sounds through the same window, and in how many seconds."""
    loaded = windowed(load(name), window)
    model: Any = loaded.model
    answers = []
    for sound in sounds:
        started = time.perf_counter()
        with torch.inference_mode():
            ids = model.generate(**loaded.encode_file(sound), language=_LANGUAGE, task="transcribe", do_sample=False)
        text = loaded.task.words.decode(ids[0], skip_special_tokens=True).strip()
        answers.append((text, time.perf_counter() - started))
    return answers


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def show(report: Report) -> list[Table]:
    title = f"{report['model']}, {report['seconds']} s of sound, plan {report['plan']}, protocol {report['protocol']}"
    rows = {
        "words as float32's": f"{report['same_words']} of {report['sounds']} sounds",
        "the sound, online": seconds(report["encoder_online_s"]),
        "the sound, offline": seconds(report["encoder_offline_s"]),
        "online traffic": megabytes(report["encoder_online_bytes"]),
        "offline traffic": megabytes(report["encoder_offline_bytes"]),
        "rounds": f"{report['encoder_rounds']:.0f}",
        "a token, online": seconds(report["online_s_per_token"]),
        "a token, offline": seconds(report["offline_s_per_token"]),
        "a token, rounds": f"{report['rounds_per_token']:.0f}",
        "a sentence, waited for": seconds(report["wall_s"]),
        "a sentence, in the clear": seconds(report["plaintext_s"]),
        "memory, largest party": f"{report['peak_rss_mb']:.0f} MB",
    }
    return [grid(title, rows)]


def main(arguments: list[str] | None = None) -> int:
    options = parser("speech", "Measure speech that is written down in private.")
    options.add_argument("--model", default="whisper-base", help="whisper-base or a folder (%(default)s)")
    options.add_argument("--seconds", type=int, default=SECONDS, help="of sound that are heard at once (%(default)s)")
    options.add_argument("--sounds", type=Path, help="a folder of WAV files (default: sentences by espeak-ng)")
    options.add_argument("--count", type=int, default=len(SENTENCES), help="sentences (%(default)s)")
    options.add_argument("--plan", choices=PLANS, default="faithful")
    options.add_argument("--protocol", choices=talking(), default=DEFAULT)
    add_weights(options)
    options.add_argument("--timeout", type=float, default=600, help="seconds of silence allowed (%(default)s)")
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
