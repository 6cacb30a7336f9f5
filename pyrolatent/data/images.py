"""Images: reading folders of them, and where the channels of an array of images are."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyrolatent.data.store import Array, Stack, mapped
from pyrolatent.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Layout = Literal["channels_first", "channels_last"]
LARGER, SMALLER = 10, 200
"""How many times larger, or smaller, the largest value of images may be than that of the training images."""
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Endings of the files that are read as images."""


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """Where the channels of images of any type are, from the shape of their array; None if it has not four axes.

    They are last if the last axis has 1, 3 or 4 entries and the second has neither 1, 3 nor as many as the last.
    """
    if len(shape) != 4:
        return None
    last = shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, shape[-1])
    return "channels_last" if last else "channels_first"


def arranged(x: Array, shape: Sequence[int] | None, layout: Layout | None, name: str) -> Array:
    """Images with their channels first, (datapoints, channels, height, width); other arrays as they are.

    Args:
        x: an array of any type. Bytes of three axes are grey images.
        shape: shape of a datapoint whose entries are a flat row; whole numbers from 0 to 255 are then bytes.
        layout: where the channels are; None for the rule of `layout_of`.
        name: name of the array in messages.

    Raises:
        InputError: the rows have another number of entries, or there are no axes for channels to be last.
    """
    if shape:
        if x.ndim != 2 or x.shape[1] != math.prod(shape):
            raise InputError(f"{name}: x has shape {x.shape}, whose rows cannot have the shape {list(shape)}")
        grey = x.dtype.kind in "ui" and x.size and x.min() >= 0 and x.max() <= 255
        x = (mapped(np.asarray, x, dtype=np.uint8) if grey else x).reshape(len(x), *shape)
    if layout == "channels_last" and x.ndim < 4:
        raise InputError(f"{name}: x has shape {x.shape}, but channels_last needs (N, height, width, channels)")
    if (layout or layout_of(x.shape)) == "channels_last":
        return np.moveaxis(x, -1, 1)
    return x[:, None] if x.dtype == np.uint8 and x.ndim == 3 else x


def largest_of(x: Array, factor: float) -> float:
    """The largest absolute value of images, (datapoints, ...), in the units in which they are modelled."""
    return factor * max(abs(float(x.min())), abs(float(x.max())))


def factor_like(x: Array, dtype: "np.dtype[Any]", record: Mapping[str, Any]) -> float:
    """The factor that converts later data to the units of the training data.

    Args:
        x: the later data.
        dtype: their type in the source.
        record: the record of the training data.
    """
    if dtype.kind in "bf":
        return 1.0
    unit = record["levels"] is None and record.get("largest", math.inf) <= 1
    if dtype == np.uint8 and x.ndim > 2 and x.max() > 1 and unit:
        return 1 / 255  # the training images are bytes that were divided before
    return float(record["factor"])


def require_one_unit(x: Array, factor: float, largest: float, name: str) -> None:
    """Requires images to be in the units of the training images, as bytes and numbers in [0, 1] are not.

    Args:
        x: (datapoints, ...); anything but images is in any unit.
        factor: multiplier that converts x to the modelled values.
        largest: the largest absolute value of the training images, converted.
        name: name of the images in messages.

    Raises:
        InputError: they are much larger or smaller.
    """
    found = largest_of(x, factor)
    if x.ndim > 2 and largest and (found > LARGER * largest or 0 < found < largest / SMALLER):
        raise InputError(
            f"{name}: the largest value of these images is {found:.4g}, but that of the training images {largest:.4g}; "
            "give both as bytes, or both as numbers in the same units"
        )


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its sub-folders, sorted by name."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())


def warn_of_others(folder: Path) -> None:
    """Warns of files in a folder of images that are not read; hidden ones are not meant."""
    hidden = ("Thumbs.db", "desktop.ini")
    others = sorted(
        file
        for file in folder.rglob("*")
        if not (file.is_dir() or file.name.startswith(".") or file.name in hidden)
        and not (file.suffix.lower() in IMAGES and file.is_file())
    )
    if others:
        listed = ", ".join(str(file.relative_to(folder)) for file in others[:3]) + ", ..." * (len(others) > 3)
        warnings.warn(
            f"{folder}: {len(others)} files are not read, since they are no {', '.join(IMAGES)}: {listed}", stacklevel=2
        )


def stack_images(files: list[Path], size: tuple[int, int] | None = None, *, grey: bool = False) -> Array:
    """Reads images as (datapoints, height, width) if all are grey, else (datapoints, height, width, 3).

    Args:
        files: the files.
        size: height and width to resize to; None for images of one size.
        grey: whether to convert colours to grey.

    Raises:
        InputError: a file is no image of 8 bits without transparency, or sizes differ; the message names the file.
    """
    from PIL import Image

    stack, mode, first = Stack(), "L", (0, 0)
    for file in files:
        image = read_image(file)
        if size:
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        first = first if any(first) else image.size
        if image.size != first:
            shapes = [f"{width} x {height}" for width, height in (first, image.size)]
            raise InputError(
                f"images differ in size: {files[0]} is {shapes[0]}, {file} is {shapes[1]}; declare "
                "resize: [height, width]"
            )
        if image.mode != mode == "L" and not grey:
            mode, stack = "RGB", _in_colour(stack)
        stack.add(np.asarray(image.convert(mode))[None])
    return stack.array()


def _in_colour(grey: Stack) -> Stack:
    """Grey images as images of three equal channels."""
    stack = Stack()
    for images in grey:
        stack.add(np.repeat(images[..., None], 3, -1))
    return stack


def read_image(file: Path) -> "Image.Image":
    """An image as grey or red, green and blue, turned as its EXIF data say; an opaque alpha channel is dropped.

    Raises:
        InputError: it cannot be read, has more than 8 bits per channel, several frames or transparent pixels.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("ignore")
            frames = getattr(opened, "n_frames", 1)
            opened.load()
            image: Image.Image = ImageOps.exif_transpose(opened)
    except Exception as error:  # whatever a damaged file does to a decoder
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{file}: cannot be read ({reason}); a whole image is expected") from error
    if frames > 1:
        raise InputError(f"{file}: holds {frames} images; save each as a file")
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{file}: more than 8 bits per pixel (mode {image.mode}) cannot be read; save the values, divided by their "
            "largest possible one, such as 65535, as .npy"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise InputError(f"{file}: has transparent pixels; save it on a background without them")
        return image.convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
