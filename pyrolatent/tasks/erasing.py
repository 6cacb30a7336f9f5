"""Masks of images with a region erased."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pyrolatent.declaration import choices
from pyrolatent.errors import InputError

SIDES = ("bottom", "top", "left", "right", "centre")
"""Regions by name: halves of an image, and the middle quarter of its area."""


def erased(region: Any, event_shape: tuple[int, ...]) -> Tensor:
    """A mask of images, (*event_shape), bool, False in a region that is erased.

    Args:
        region: bottom, top, left, right (halves) or centre; a rectangle of pixels "top,left,height,width" or these four
            numbers; or an image file of the size of the images, dark where it is erased.
        event_shape: shape of an image, (height, width) or (channels, height, width).

    Raises:
        InputError: the data are no images, or there is no such region.
    """
    if len(event_shape) not in (2, 3):
        raise InputError(f"a region is erased from images, but x has the shape {tuple(event_shape)}; put NaN there")
    height, width = event_shape[-2:]
    if isinstance(region, str | Path) and Path(region).suffix:
        seen = _of_file(Path(region), height, width)
    else:
        top, left, high, wide = _rectangle(region, height, width)
        seen = torch.ones(height, width, dtype=torch.bool)
        seen[top : top + high, left : left + wide] = False
    if seen.all():
        raise InputError(f"the region {region} erases nothing of images of {height} x {width} pixels")
    return seen.expand(event_shape)


def _rectangle(region: Any, height: int, width: int) -> tuple[int, int, int, int]:
    half, middle = (height + 1) // 2, (width + 1) // 2
    named = {
        "bottom": (height - height // 2, 0, height // 2, width),
        "top": (0, 0, height // 2, width),
        "left": (0, 0, height, width // 2),
        "right": (0, width - width // 2, height, width // 2),
        "centre": (height // 4, width // 4, half, middle),
    }
    if region in named:
        return named[region]
    try:
        top, left, high, wide = (int(number) for number in (region.split(",") if isinstance(region, str) else region))
    except (TypeError, ValueError):
        raise InputError(
            f"there is no region {region!r}; {choices(str(region), SIDES)}, a rectangle top,left,height,width, or an "
            "image file"
        ) from None
    if min(top, left) < 0 or min(high, wide) < 1 or top + high > height or left + wide > width:
        raise InputError(f"the rectangle {region} does not lie in images of {height} x {width} pixels")
    return top, left, high, wide


def _of_file(path: Path, height: int, width: int) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = torch.tensor(list(image.convert("L").getdata())).reshape(image.height, image.width)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    if pixels.shape != (height, width):
        raise InputError(
            f"{path} has {pixels.shape[0]} x {pixels.shape[1]} pixels, but the images {height} x {width}; give one of "
            "their size"
        )
    return pixels > 127
