"""Images in a request: data URLs, so many, of so many pixels in all. They are decoded one by one, when encoded."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import BytesIO

from ...models.loading.huggingface import InputError
from ...models.loading.media import count_pixels
from .problems import ApiError, input_place

MOST_IMAGES, MOST_PIXELS = 64, 25_000_000  # of one request: a small file may say that it holds gigabytes


def image_files(urls: Sequence[str]) -> list[BytesIO]:
    """What they hold, not decoded. Errors: ApiError, also for more than a request may have."""
    if len(urls) > MOST_IMAGES:
        raise ApiError(400, f"input: {len(urls)} images; give at most {MOST_IMAGES} at once", param="input")
    files, pixels = [], 0
    for at, url in enumerate(urls):
        place = input_place(at, len(urls))
        try:
            files.append(_data(url))
            pixels += count_pixels(files[-1])
        except InputError as error:
            raise no_image(place, error) from None
        if pixels > MOST_PIXELS:
            what = f"a request has at most {MOST_PIXELS // 10**6} million pixels; make images smaller, or ask for fewer"
            raise no_image(place, what)
    return files


def no_image(place: str, why: object) -> ApiError:
    return ApiError(400, f"{place}: {why}", param="input", code="invalid_image")


def _data(url: str) -> BytesIO:
    """A file's name would be read on this machine, for whoever asks. Errors: InputError."""
    head, _, data = url.partition(",")
    if not re.fullmatch(r"data:image/[\w.+-]+;base64", head):
        raise InputError('is no image; this model takes "data:image/png;base64,..." (or jpeg, webp)')
    try:
        return BytesIO(base64.b64decode(data, validate=True))
    except ValueError:
        raise InputError("its base64 is broken") from None
