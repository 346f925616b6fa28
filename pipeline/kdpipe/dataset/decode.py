"""Decode image files, or convert pictures in memory, to uint8 RGB pixels.

Everything becomes three channels of eight bits: gray is repeated, alpha is dropped, palettes and CMYK are
converted, 16-bit gray is scaled. Only the first frame of an animation is read. EXIF orientation is not
applied: the pixels are as stored in the file.

Pillow decodes them. Where simplejpeg is installed, it decodes the JPEG files that it accepts without a warning: its
pixels are equal, and it takes about half the time (``benchmarks/decode.py``). Pillow alone decides what is refused.
torchvision.io gives the same pixels, too, but its decoders are deprecated, it refuses other broken files than Pillow
does, and it is hardly faster for photographs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from kdpipe.errors import DatasetError

Pixels = npt.NDArray[np.uint8]

_NEEDS_A_PLUGIN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

TURNED, DARK = 1, 2
"""Remarks on an image file: its EXIF orientation is not applied; its levels have 12 of 16 bits."""

_ORIENTATION = 0x0112
"""EXIF tag."""

_MAX_PIXELS = 178_956_970
"""Pixels of the largest image; Pillow's own limit."""


@cache
def image_extensions() -> frozenset[str]:
    """Return the lower-case file extensions, with their dot, that Pillow can read without a plugin."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN and kind not in _NEEDS_A_PLUGIN)


@cache
def decoder_name() -> str:
    """Return the versions of Pillow, its libjpeg and simplejpeg, which decide the decoded pixels."""
    turbo = features.version_feature("libjpeg_turbo")
    name = f"pillow{PIL.__version__}-" + (f"libjpeg-turbo{turbo}" if turbo else f"jpeg{features.version('jpg')}")
    return name if _simplejpeg() is None else f"{name}-simplejpeg{_simplejpeg().__version__}"


@cache
def _simplejpeg() -> Any:
    """Return the optional decoder of JPEG files; None where it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def decode(content: bytes, where: str) -> Pixels:
    """Return the pixels of an image file as uint8 ``(3, height, width)``.

    Raises:
        DatasetError: ``content`` is no image, or a truncated one; the message begins with ``where``.
    """
    if (pixels := _decode_jpeg(content)) is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(content)) as image:
            _refuse_too_large(image)
            return from_pillow(image)
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on broken files
        raise _unreadable(where, error) from error


def _decode_jpeg(content: bytes, *, scale: int = 1) -> Pixels | None:
    """Return the pixels of a JPEG file by simplejpeg; None for what is left to Pillow, such as CMYK and damage.

    With a ``scale`` of 8 they are those of an eighth of its size.
    """
    decoder = _simplejpeg()
    if decoder is None or not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = decoder.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > _MAX_PIXELS:
            return None
        least = {"min_height": max(1, height // scale), "min_width": max(1, width // scale)} if scale > 1 else {}
        image: Pixels = decoder.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True, **least)
    except ValueError:
        return None
    return image.transpose(2, 0, 1)


def look(content: bytes, where: str) -> tuple[Pixels, int]:
    """Return the pixels of an image file as ``decode`` does, and remarks as ``describe`` does, at once.

    Raises:
        DatasetError: as for ``decode``.
    """
    oriented = b"Exif" in content or b"Orientation" in content
    if not oriented and (pixels := _decode_jpeg(content)) is not None:
        return pixels, 0
    return decode(content, where), describe(content, where)[2]


def describe(content: bytes, where: str) -> tuple[int, int, int]:
    """Return height, width and remarks of an image file by its header, mostly without decoding it.

    Remarks are the sum of ``TURNED`` for an EXIF orientation and ``DARK`` for 12 bits stored as 16.

    Raises:
        DatasetError: ``content`` is no image; the message begins with ``where``.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            _refuse_too_large(image)
            return image.height, image.width, _remarks(image)
    except Exception as error:  # as in decode
        raise _unreadable(where, error) from error


def check(content: bytes, where: str) -> None:
    """Decode an image file only to find faults; a JPEG at an eighth of its size, which reads all of its data.

    Raises:
        DatasetError: ``decode`` would refuse it.
    """
    if _decode_jpeg(content, scale=8) is not None:
        return
    try:
        with Image.open(io.BytesIO(content)) as image:
            _refuse_too_large(image)
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            if image.mode == "RGB":
                image.load()
            else:
                from_pillow(image)
    except Exception as error:  # as in decode
        raise _unreadable(where, error) from error


def _remarks(image: Image.Image) -> int:
    found = 0
    with contextlib.suppress(Exception):
        # Pillow decodes all of a PNG to look for EXIF data behind its pixels.
        if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION, 1) != 1:
            found |= TURNED
        if image.mode == "I" or image.mode.startswith("I;16"):
            lowest, highest = image.getextrema()
            found |= DARK if lowest != highest and 255 < highest < 4096 else 0  # type: ignore[operator]
    return found


def _refuse_too_large(image: Image.Image) -> None:
    """Refuse a small file that would become gigabytes of pixels."""
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"it has {image.width:,} x {image.height:,} pixels, expected at most {_MAX_PIXELS:,}")


def _unreadable(where: str, error: Exception) -> DatasetError:
    reason = "not an image format that Pillow reads" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it has more than {_MAX_PIXELS:,} pixels"
    return DatasetError(f"{where} cannot be decoded: {reason}; replace or remove the file")


def from_pillow(image: Image.Image) -> Pixels:
    """Return a Pillow image as uint8 ``(3, height, width)``, with the channels last in memory, as in Pillow.

    Raises:
        ValueError: The mode cannot be converted to RGB (``F``, ``LAB``).
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats (mode F), expected 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return from_array(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image).transpose(2, 0, 1)


def from_array(array: Pixels, *, channels_last: bool = True) -> Pixels:
    """Return a uint8 array as ``(3, height, width)``; one channel is repeated.

    Takes ``(H, W)``, ``(1, H, W)``, ``(3, H, W)`` and ``(H, W, 3)``; ``channels_last`` decides where both of
    the last two fit.

    Raises:
        ValueError: The shape or the type is another one.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"its pixels are {array.dtype}, expected uint8 in 0..255")
    if 0 in array.shape:
        raise ValueError(f"it has the shape {tuple(array.shape)}, expected at least one pixel")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[0] == 1):
        plane = array.reshape(array.shape[-2:])
        return np.ascontiguousarray(np.broadcast_to(plane, (3, *plane.shape)))
    if array.ndim == 3 and array.shape[2] == 3 and (channels_last or array.shape[0] != 3):
        return np.ascontiguousarray(array.transpose(2, 0, 1))
    if array.ndim == 3 and array.shape[0] == 3:
        return np.ascontiguousarray(array)
    raise ValueError(f"it has the shape {tuple(array.shape)}, expected (3, H, W), (H, W, 3) or (H, W)")


def from_picture(picture: object) -> Pixels:
    """Return a Pillow image, a tensor or an array as uint8 ``(3, height, width)``.

    Raises:
        ValueError: It is none of these, or not uint8.
    """
    if isinstance(picture, Image.Image):
        return from_pillow(picture)
    if isinstance(picture, np.ndarray):
        return from_array(picture)
    import torch

    if isinstance(picture, torch.Tensor):
        return from_array(picture.detach().cpu().numpy(), channels_last=False)
    raise ValueError(f"it is a {type(picture).__name__}, expected a PIL image or a uint8 tensor (3, H, W)")
