"""Images: the same pixels give the same images whatever their type, and a file that is not read is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyrolatent import VAE, InputError, Run, fit, load_data, load_rows
from pyrolatent.data.splits import Data

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), np.uint8)
TYPES = {"bytes": PIXELS, "unit interval": PIXELS / 255.0, "integers": PIXELS.astype(int)}


def images(data: Data) -> np.ndarray:
    """All images of a data set in the order of their rows, as they are modelled."""
    rows = torch.cat([split.row_numbers for split in data.splits])
    x = torch.cat([split.batch(slice(None)).x for split in data.splits])
    return x[rows.argsort()].numpy()


@pytest.mark.parametrize("kind", TYPES)
def test_the_rule_of_layout_is_the_same_for_every_type(kind: str) -> None:
    x = TYPES[kind]
    scale = 1 if kind == "integers" else 255
    expected = np.moveaxis(PIXELS, -1, 1) / scale
    for given, options in (
        (x, {}),
        (np.moveaxis(x, -1, 1), {}),
        (x, {"layout": "channels_last"}),
        (np.moveaxis(x, -1, 1), {"layout": "channels_first"}),
        (x.reshape(30, -1), {"shape": [8, 6, 3]}),
    ):
        data = load_data(given, **options)  # type: ignore[arg-type]
        assert data.event_shape == (3, 8, 6)
        bytes_ = kind == "integers" and "shape" in options
        np.testing.assert_allclose(images(data), expected / (255 if bytes_ else 1), rtol=1e-6)
    assert load_data(x).record["layout"] == "channels_last"
    assert "layout: channels last in the source, first in x" in load_data(x).describe()
    assert load_data(np.moveaxis(x, -1, 1)).record["layout"] == "channels_first"


@pytest.mark.parametrize(
    ("shape", "event_shape"),
    [((16, 16, 4), (4, 16, 16)), ((4, 16, 4), (4, 16, 4)), ((3, 16, 3), (3, 16, 3)), ((4, 16, 3), (3, 4, 16)),
     ((16, 16, 1), (1, 16, 16)), ((16, 16, 2), (16, 16, 2)), ((1, 16, 4), (1, 16, 4))],
)  # fmt: skip
def test_where_channels_are_taken_to_be(shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    for dtype in (np.uint8, np.float32):
        assert load_data(np.ones((20, *shape), dtype)).event_shape == event_shape
        assert load_data(np.ones((20, *shape), dtype), layout="channels_first").event_shape == shape


def test_a_mask_and_gaps_move_with_their_pixels() -> None:
    x = PIXELS / 255.0
    x[0, 1, 2, 0] = np.nan
    mask = np.random.default_rng(1).random(x.shape) < 0.9
    data = load_data(x, mask=mask)
    rows = torch.cat([split.row_numbers for split in data.splits]).argsort()
    found = torch.cat([split.mask for split in data.splits if split.mask is not None])[rows].numpy()
    assert np.array_equal(found, np.moveaxis(mask & np.isfinite(x), -1, 1))
    grey = load_data(PIXELS[..., 0], mask=mask[..., 0])
    assert grey.train.mask is not None
    assert grey.train.mask.shape[1:] == (1, 8, 6)


def test_flat_rows_are_images_of_a_shape(tmp_path: Path) -> None:
    flat = PIXELS[..., 0].reshape(30, -1)
    frame = pd.DataFrame(flat).assign(digit=np.arange(30) % 3)
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = load_data(tmp_path / "x.csv", labels="digit", shape=[8, 6])
    assert data.event_shape == (1, 8, 6)
    assert data.columns is None
    np.testing.assert_allclose(images(data), PIXELS[:, None, ..., 0] / 255, rtol=1e-6)
    assert load_data(data.declaration).record == data.record  # type: ignore[arg-type]
    found = load_rows(flat, data)
    np.testing.assert_allclose(found.batch(slice(None)).x, PIXELS[:, None, ..., 0] / 255, rtol=1e-6)
    assert load_data(flat / 1000, shape=[8, 6]).event_shape == (8, 6)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (PIXELS, {"shape": [8, 6]}, r"x has shape \(30, 8, 6, 3\), whose rows cannot have the shape \[8, 6\]"),
        (PIXELS.reshape(30, -1), {"shape": [8, 6]}, r"x has shape \(30, 144\), whose rows cannot"),
        (PIXELS[..., 0], {"layout": "channels_last"}, r"but channels_last needs \(N, height, width, channels\)"),
        (PIXELS, {"layout": "last"}, "layout was given 'last'"),
        (PIXELS, {"shape": [0, 3]}, r"shape"),
        (PIXELS, {"resize": [4, 4]}, "resize is of the images in a folder"),
        (pd.DataFrame({"a": ["x", "y"] * 20, "b": 1}), {"shape": [1, 2]}, "rows with words cannot have the shape"),
    ],
)
def test_layouts_that_are_refused(x: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(x, **options)
    assert "\n" not in str(caught.value)


def test_older_runs_keep_channels_last(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, PIXELS / 255.0)
    older = load_data(path, layout="channels_first")
    run = Run.save(tmp_path / "run", fit(VAE((8, 6, 3), latent_dim=1, likelihood="normal"), older, epochs=1))
    run.declaration["data"] = str(path)
    del run.record["data"]["columns"]
    assert run.load_data().event_shape == (8, 6, 3)


# Folders.


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "tif", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "CMYK", "RGBA", "LA"])
def test_every_format_and_mode_is_read_or_refused_by_name(tmp_path: Path, ending: str, mode: str) -> None:
    expected = PIXELS if mode not in ("L", "1", "LA") else PIXELS[..., :1]
    for i, pixels in enumerate(PIXELS):
        image = Image.fromarray(pixels)
        if mode in ("L", "LA"):
            image = Image.fromarray(pixels[..., 0])
        try:
            image.convert(mode).save(tmp_path / f"{i:02}.{ending}", **({"lossless": True} if ending == "webp" else {}))
        except (OSError, KeyError):
            pytest.skip(f"{mode} is not written as {ending}")
    data = load_data(tmp_path)
    assert data.event_shape[1:] == (8, 6)
    if ending not in ("jpg", "jpeg") and mode not in ("1", "P", "CMYK"):
        of_colours = np.broadcast_to(np.moveaxis(expected, -1, 1), (30, *data.event_shape))
        np.testing.assert_allclose(images(data), of_colours / 255, rtol=1e-6)


def test_images_that_are_refused_by_name(tmp_path: Path) -> None:
    transparent = np.concatenate([PIXELS[0], np.full((8, 6, 1), 100, np.uint8)], -1)
    frames = [Image.fromarray(pixels) for pixels in PIXELS[:2]]
    made: dict[str, tuple[Any, str]] = {
        "a.png": (lambda path: Image.fromarray(transparent).save(path), "has transparent pixels"),
        "b.png": (lambda path: Image.fromarray(np.zeros((8, 6), np.uint16)).save(path), "more than 8 bits per pixel"),
        "c.tif": (lambda path: Image.fromarray(np.zeros((8, 6), np.float32)).save(path), "more than 8 bits per pixel"),
        "d.tif": (lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]), "holds 2 images"),
        "e.webp": (lambda path: path.write_bytes(b"RIFF0000WEBP"), "cannot be read"),
        "f.bmp": (lambda path: path.write_bytes(b"BM" + bytes(60)), "cannot be read"),
    }
    for name, (write, message) in made.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        frames[0].save(folder / "0.png")
        write(folder / name)
        with pytest.raises(InputError, match=rf"{name}: .*{message}") as caught:
            load_data(folder)
        assert "\n" not in str(caught.value)


def test_images_of_several_sizes_are_resized(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[: 8 - i % 3]).save(tmp_path / f"{i:02}.png")
    with pytest.raises(InputError, match=r"images differ in size: .*declare resize: \[height, width\]"):
        load_data(tmp_path)
    data = load_data(tmp_path, resize=(4, 5))
    assert data.event_shape == (3, 4, 5)
    assert load_data(data.declaration).record == data.record  # type: ignore[arg-type]
    assert len(load_rows(tmp_path, data)) == 30


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.{'tif' if i % 3 == 0 else 'png'}")
    for name in (".hidden", "Thumbs.db"):
        (tmp_path / name).touch()
    assert sum(load_data(tmp_path).record["sizes"].values()) == 30
    for name in ("notes.txt", "movie.gif"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"2 files are not read, since they are no \.png, .*: movie\.gif, notes\.txt"):
        load_data(tmp_path)


UNITS = {
    "bytes": PIXELS,
    "unit interval": PIXELS / 255.0,
    "undivided": PIXELS * 1.0,
    "integers": PIXELS.astype(int),
    "binary": (PIXELS > 127).astype(np.uint8),
    "truth": PIXELS > 127,
}
REFUSED = {
    ("bytes", "undivided"), ("bytes", "binary"), ("unit interval", "undivided"), ("unit interval", "integers"),
    ("undivided", "unit interval"), ("undivided", "binary"), ("undivided", "truth"), ("integers", "unit interval"),
    ("integers", "binary"), ("integers", "truth"), ("binary", "bytes"), ("binary", "undivided"), ("binary", "integers"),
    ("truth", "undivided"), ("truth", "integers"),
}  # fmt: skip


@pytest.mark.parametrize("trained", UNITS)
@pytest.mark.parametrize("given", UNITS)
def test_later_images_come_in_the_units_of_the_training_images_or_are_refused(trained: str, given: str) -> None:
    data = load_data(UNITS[trained])
    if (trained, given) in REFUSED:
        with pytest.raises(InputError, match="largest value of these images"):
            load_rows(UNITS[given], data)
        return
    x = load_rows(UNITS[given], data).batch(slice(None)).x.numpy()
    whole = (PIXELS > 127) if given in ("binary", "truth") else PIXELS / 255
    unit = 255 if trained in ("undivided", "integers") else 1
    np.testing.assert_allclose(x, np.moveaxis(whole * unit, -1, 1), rtol=1e-6)


def test_parts_of_images_in_other_units_and_grey_values_that_cannot_be_binarized_are_refused() -> None:
    with pytest.raises(InputError, match=r"array \(test\): the largest value of these images is 255"):
        load_data(PIXELS / 255.0, test=PIXELS * 1.0)
    data = load_data(PIXELS / 255.0, binarize="static")
    with pytest.raises(InputError, match="binarize: static takes values in"):
        load_rows(PIXELS / 100.0, data)


def test_images_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    pixels = PIXELS[0]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned clockwise by a right angle
    for i in range(12):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=turned)
    data = load_data(tmp_path)
    np.testing.assert_array_equal(np.moveaxis(images(data)[0] * 255, 0, -1).round(), np.rot90(pixels, -1))
