"""Images as a model of images takes them: files, folders of files, and PIL images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import first_line
from .errors import InputError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_image(image: Any) -> Any:
    """A PIL image in RGB, from a file or as it is. Errors: InputError."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise InputError("images need Pillow; run: pip install 'blindformer[vision]'") from None
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError:
            raise InputError(f"{image}: there is no such file; give an image's path") from None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
            raise InputError(f"{image}: is no image that can be read ({first_line(error)})") from None
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    raise InputError(f"an image is a file's path or a PIL image, not {type(image).__name__}")


def image_of(pixels: Tensor) -> Any:
    """A PIL image of grey levels, uint8 [H, W]. Errors: InputError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("images need Pillow; run: pip install 'blindformer[vision]'") from None
    return Image.fromarray(pixels.numpy())


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The images that `paths` name: files as they are, folders' images in order of their names. Errors: InputError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
            if not inside:
                raise InputError(f"{path}: holds no images ({', '.join(IMAGE_ENDINGS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file; give an image or a folder of images")
    return found
