"""Models of images and of recordings: their inputs are files, which have endings, and folders of them."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import first_line
from .huggingface import FILES_ALONE, InputError, huggingface, refused

# Images as a model of images takes them: files and PIL images.

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # those of the endings: for others Pillow starts programs
_MOST = 50_000_000  # pixels: a small file may say that it holds gigabytes


def pillow() -> Any:
    """PIL.Image. Errors: InputError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("images need Pillow; run: pip install 'blindformer[vision]'") from None
    return Image


def open_image(image: Any) -> Any:
    """A PIL image in RGB, from a file (its path, or its bytes in a BytesIO) or as it is; pixels in a tensor or an array
    stay so. Errors: InputError."""
    if isinstance(image, Tensor | np.ndarray):
        return image
    pillow()
    from PIL import Image, ImageOps

    if isinstance(image, str | Path | BytesIO):
        with _opened(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    raise InputError(f"an image is a file's path, a PIL image or a tensor, not {type(image).__name__}")


def count_pixels(image: str | Path | BytesIO) -> int:
    """As the file's head says; nothing is decoded. Errors: InputError."""
    pillow()
    with _opened(image) as opened:
        return opened.width * opened.height


@contextmanager
def _opened(image: str | Path | BytesIO) -> Iterator[Any]:
    """What Pillow reads of a file's head. Errors: InputError, also for what it is decoded to."""
    from PIL import Image, UnidentifiedImageError

    name = "the image" if isinstance(image, BytesIO) else image
    try:
        with Image.open(image, formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST:
                raise InputError(f"{name}: has more than {_MOST // 10**6} million pixels; make it smaller")
            yield opened
    except FileNotFoundError:
        raise InputError(f"{image}: there is no such file; give an image's path") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise InputError(f"{name}: is no image that can be read ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    """Without the address of what was to be read."""
    return first_line(error).partition(" <_io.")[0]


def image_of(pixels: Tensor) -> Any:
    """A PIL image of grey levels, uint8 [H, W]. Errors: InputError without Pillow."""
    return pillow().fromarray(pixels.numpy())


# Recordings as a model of speech takes them: WAV files, and arrays of samples.

AUDIO_ENDINGS = (".wav",)
_TYPES = {1: np.dtype("u1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<i4")}  # by bytes of a sample
_RATES = range(1000, 768_001)
MOST_SAMPLES = 1 << 28  # before a recording is resampled and after: 4.6 hours at 16,000 a second, 1 GiB


def open_audio(audio: Any, rate: int, most: int = MOST_SAMPLES) -> np.ndarray:
    """Samples from -1 to 1, float32 [samples], of a file (its path, or its bytes in a BytesIO) or an array. `rate`: the
    model's, in samples a second; a recording of another is resampled. `most`: samples, before that and after.

    Channels are averaged. Errors: InputError.
    """
    own_rate = rate
    if isinstance(audio, Mapping):  # as transformers' pipelines and data sets have them
        own_rate = audio.get("sampling_rate", rate)
        if not isinstance(own_rate, int) or own_rate not in _RATES:
            raise InputError(f"sampling_rate {own_rate!r}: is no number of samples a second; give one such as 16000")
        audio = audio.get("raw", audio.get("array", ()))
    if isinstance(audio, str | Path | BytesIO):
        return _resampled(*_samples_of_file(audio, rate, most), rate)
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim != 1 or not samples.size:
        raise InputError("a recording is a WAV file's path or an array of samples [samples]; give one of these")
    _check_length("the audio", samples.size, own_rate, rate, most)
    return _resampled(samples, own_rate, rate)


def _check_length(name: object, count: int, own: int, rate: int, most: int) -> None:
    """Errors: InputError if so many samples, or what they are resampled to, are too many."""
    if count > (allowed := most * own // max(own, rate)):
        what = f"lasts more than {allowed / own / 60:.3g} minutes, which is the most; cut it into several"
        raise InputError(f"{name}: {what}")


def _samples_of_file(audio: str | Path | BytesIO, rate: int, most: int) -> tuple[np.ndarray, int]:
    """(samples, samples a second). Errors: InputError."""
    name = "the audio" if isinstance(audio, BytesIO) else audio
    try:
        with wave.open(audio if isinstance(audio, BytesIO) else str(audio), "rb") as file:
            own_rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(min(file.getnframes(), most + 1))  # a head may announce more than there is
    except FileNotFoundError:
        raise InputError(f"{audio}: there is no such file; give a WAV file's path") from None
    except (OSError, EOFError, wave.Error) as error:
        why = str(error) or "it ends too soon"
        raise InputError(f"{name}: is no WAV file that can be read ({why}); save it as WAV of 16 bits") from None
    if width not in _TYPES or own_rate not in _RATES:
        raise InputError(
            f"{name}: has samples of {8 * width} bits, {own_rate} a second; save it as WAV of 16 bits, 16000 a second"
        )
    frames = len(data) // (width * channels)
    _check_length(name, frames, own_rate, rate, most)
    data = data[: frames * width * channels]
    if width == 3:  # numpy has no such integers: a zero byte before each makes one of 32 bits
        data = np.pad(np.frombuffer(data, np.uint8).reshape(-1, 3), ((0, 0), (1, 0))).tobytes()
    whole = np.frombuffer(data, _TYPES[width])
    if not whole.size:
        raise InputError(f"{name}: holds no samples; record something, or leave it out")
    middle, scale = (128.0, 128.0) if width == 1 else (0.0, 2.0 ** (8 * whole.itemsize - 1))
    return ((whole.astype(np.float32) - middle) / scale).reshape(-1, channels).mean(1), own_rate


_CROSSINGS = 16  # zeros of the kernel to each side of a sample
_CHUNK_WEIGHTS = 1 << 20  # weights that are computed together


def _resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """The samples at another rate, float32: each a sum of those near its time, weighted by a sinc under a cosine's
    square, which passes what both rates can carry."""
    if own == rate:
        return samples
    band = 0.95 * min(1.0, rate / own)  # of the frequencies that the samples carry
    reach = int(np.ceil(_CROSSINGS / band))
    near, padded = np.arange(1 - reach, reach + 1), np.pad(samples, reach)
    resampled = np.empty(-(-len(samples) * rate // own), np.float32)
    size, phases = _CHUNK_WEIGHTS // len(near), rate // gcd(own, rate)  # after so many samples the weights repeat
    size = size // phases * phases or size
    for start in range(0, len(resampled), size):
        times = np.arange(start, min(start + size, len(resampled))) * own / rate
        first = times.astype(np.int64)
        if start == 0 or size % phases:
            away = (times - first)[:, None] - near
            weights = band * np.sinc(band * away) * np.cos(np.pi * away / (2 * reach)) ** 2
        terms = padded[first[:, None] + near + reach] * weights[: len(times)]
        resampled[start : start + size] = terms.sum(1)
    return resampled


_QUIET = 0.02  # seconds: where a recording is cut, the quietest of so many
_LAST = 0.3  # of a piece: where it may be cut


def pieces(samples: np.ndarray, rate: int, seconds: int) -> Iterator[np.ndarray]:
    """A recording in pieces of at most so many seconds, each cut where it is quietest near its end: between words."""
    most, quiet = seconds * rate, max(int(_QUIET * rate), 1)
    while len(samples) > most:
        near = samples[int(most * (1 - _LAST)) : most]
        rows = near[: len(near) // quiet * quiet].reshape(-1, quiet)
        least = int(np.square(rows).mean(1).argmin())
        at = int(most * (1 - _LAST)) + least * quiet + quiet // 2
        yield samples[:at]
        samples = samples[at:]
    yield samples


@dataclass(frozen=True)
class Medium:
    """`word`: for one of them, and `one` with its article. `task`: what transformers' names of its tasks start with."""

    word: str
    one: str
    task: str
    endings: Sequence[str]

    @property
    def plural(self) -> str:
        """Images, recordings."""
        return f"{self.one.split()[1]}s"


MEDIA = {  # by the kind of model (Task.kind)
    "image": Medium("image", "an image", "image", IMAGE_ENDINGS),
    "audio": Medium("audio", "a recording", "audio", AUDIO_ENDINGS),
    "speech": Medium("audio", "a recording", "automatic-speech", AUDIO_ENDINGS),
}


def word_of_kind(kind: str) -> str:
    """What a model of a kind (Task.kind) is asked: image, audio or text."""
    return MEDIA[kind].word if kind in MEDIA else "text"


def word_of(task: str) -> str:
    """What a task of transformers' name is asked: image, audio or text."""
    return next((medium.word for medium in MEDIA.values() if task.startswith(f"{medium.task}-")), "text")


def media_files(kind: str, paths: Iterable[Path]) -> list[Path]:
    """What `paths` name for a model of this kind: files as they are, folders' files in order of their names.

    Errors: InputError.
    """
    medium, files = MEDIA[kind], []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in medium.endings)
            if not inside:
                raise InputError(f"{path}: holds no {medium.plural} ({', '.join(medium.endings)})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: there is no such file; give a file or a folder of {medium.plural}")
    return files


# The tokenizer, image processor or feature extractor that a folder holds.

# Importing one takes a second or two.
_FACTORIES = {"image": "AutoImageProcessor", "audio": "AutoFeatureExtractor", "speech": "AutoProcessor"}
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def read_processor(folder: Path, kind: str) -> Any:
    """For a model of this kind (Task.kind); None where the folder holds none, or a library it needs is missing.

    Errors: LoadError for one that needs code of its own.
    """
    if kind not in MEDIA and not any(list(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None  # transformers would make up an empty one, to which every word is unknown
    with huggingface() as transformers:
        try:
            factory = getattr(transformers, _FACTORIES.get(kind, "AutoTokenizer"))
            processor = factory.from_pretrained(folder, **FILES_ALONE)
        except Exception as error:  # no files, or a library they need is missing: the model can still be fed tensors
            if (why := refused(folder, error)) is not None:
                raise why from None
            return None
    if kind not in MEDIA and getattr(processor, "pad_token", "") is None:
        processor.pad_token = processor.eos_token  # any token will do: the mask hides it
    return processor
