"""Images as a model of images takes them: files and PIL images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import first_line
from .errors import InputError

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
