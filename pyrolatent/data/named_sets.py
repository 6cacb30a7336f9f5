"""Named data sets: downloading and reading them."""

import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import numpy as np

from pyrolatent.data.files import Part, Source, unreadable
from pyrolatent.data.images import image_files, stack_images
from pyrolatent.data.store import Array, data_directory
from pyrolatent.errors import InputError

CIFAR10_RECORDS = 10_000  # per file
_CIFAR10_FILES = tuple(
    f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)


def read_named(name: str, data_dir: str | Path | None = None) -> Source:
    """Reads a named data set from the data directory, downloading it first if it is not there.

    Args:
        name: one of `NAMED`.
        data_dir: directory with torchvision's layout; None is the environment variable PYROLATENT_DATA, else the user's
            cache directory.

    Raises:
        InputError: a file is truncated, or missing and cannot be downloaded.
    """
    root = Path(data_dir).expanduser() if data_dir else data_directory()
    entry = NAMED[name]
    missing = [file for file in entry.files if not (root / file).exists()]
    if missing:
        _download(name, entry, root, missing)
    return entry.read(name, root)


class _Named(NamedTuple):
    """A named data set: the function that reads it, the files it needs, and the function that downloads them."""

    read: Callable[[str, Path], Source]
    files: tuple[str, ...] = ()
    download: Callable[[str], None] = lambda root: None


def _download(name: str, entry: _Named, root: Path, missing: list[str]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Existing files count as complete, so nothing is put there before the download is complete.
        with tempfile.TemporaryDirectory(dir=root) as folder:
            entry.download(folder)
            for file in [path for path in Path(folder).rglob("*") if path.is_file()]:
                target = root / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except (OSError, RuntimeError, HTTPException, BadZipFile, EOFError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} is not in {root} and could not be downloaded ({reason}); put {', '.join(missing)} there, "
            "unpacked, or name another directory by data_dir or PYROLATENT_DATA"
        ) from error


def _digits(name: str, root: Path) -> Source:
    from sklearn.datasets import load_digits  # half a second that only this data set should cost

    digits = load_digits()
    return Source(name, Part(digits.images.astype(np.uint8)[:, None], digits.target), binarize="dynamic", levels=17)


def _idx(dataset: str, prefixes: tuple[str, str], upright: bool = True) -> _Named:
    """MNIST or a data set in its format; EMNIST's images are transposed."""
    stems = [f"{dataset}/raw/{prefix}" for prefix in prefixes]

    def read(name: str, root: Path) -> Source:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        parts = []
        for stem in stems:
            x = _read_idx(read_image_file, root / f"{stem}-images-idx3-ubyte")
            y = _read_idx(read_label_file, root / f"{stem}-labels-idx1-ubyte")
            parts.append(Part(x if upright else x.swapaxes(1, 2), y))
        return Source(name, parts[0], test=parts[1], binarize="dynamic")

    def download(root: str) -> None:
        from torchvision import datasets

        getattr(datasets, dataset)(root, **({} if upright else {"split": "balanced"}), download=True)

    files = (f"{stem}-{kind}" for stem in stems for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return _Named(read, tuple(files), download)


def _read_idx(reader: Callable[[str], Any], path: Path) -> Array:
    try:
        return cast(Array, reader(str(path)).numpy())
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise unreadable(path, error, "it may be truncated: delete it to download it again") from error


def _omniglot(name: str, root: Path) -> Source:
    parts: list[Part] = []
    for folder in ("images_background", "images_evaluation"):
        files = image_files(root / "omniglot-py" / folder)
        if not files:
            raise InputError(
                f"{root}/omniglot-py/{folder}: there are no images in this folder; delete it to download it"
            )
        _, y = np.unique([str(file.parent) for file in files], return_inverse=True)
        # The evaluation set has other characters, so its labels continue after those of the background set.
        offset = parts[0].y.max() + 1 if parts and parts[0].y is not None else 0
        parts.append(Part(255 - stack_images(files, (28, 28), grey=True), y + offset))
    return Source(name, parts[0], test=parts[1], binarize="dynamic")


def _download_omniglot(root: str) -> None:
    from torchvision import datasets

    for background in (True, False):
        datasets.Omniglot(root, background=background, download=True)


def _cifar10(name: str, root: Path) -> Source:
    def part(*files: str) -> Part:
        records = np.concatenate([_read_records(root / file, CIFAR10_RECORDS) for file in files])
        return Part(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])

    return Source(name, part(*_CIFAR10_FILES[:5]), test=part(_CIFAR10_FILES[5]))


def _read_records(path: Path, count: int) -> Array:
    values = np.fromfile(path, np.uint8)
    if values.size != count * 3073:
        raise InputError(f"{path}: holds {values.size} bytes, not {count * 3073}; delete it to download it again")
    return values.reshape(count, 3073)


def _download_cifar10(root: str) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    # torchvision's class reads the pickled version, and this package unpickles nothing.
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    download_and_extract_archive(url, root, md5="c32a1d4ab5d03f1284b67883e8d87530", remove_finished=True)


def _svhn(name: str, root: Path) -> Source:
    from torchvision import datasets

    parts = []
    for split in ("train", "test"):
        try:
            dataset = datasets.SVHN(str(root), split)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise unreadable(root / f"{split}_32x32.mat", error, "delete it to download it again") from error
        parts.append(Part(dataset.data, dataset.labels))
    return Source(name, parts[0], test=parts[1])


def _download_svhn(root: str) -> None:
    from torchvision import datasets

    for split in ("train", "test"):
        datasets.SVHN(root, split, download=True)


BINARIZED_MNIST_IMAGES = {"train": 50_000, "valid": 10_000, "test": 10_000}


def _binarized_mnist(name: str, root: Path) -> Source:
    def part(split: str) -> Part:
        path = root / "BinarizedMNIST" / f"binarized_mnist_{split}.amat"
        text = np.fromfile(path, np.uint8)
        # Zeros and ones between white space: comparing bytes is a hundred times faster than parsing 55 million numbers.
        values = text[text > ord(" ")]
        count = BINARIZED_MNIST_IMAGES[split]
        if values.size != count * 784 or not np.isin(values, (ord("0"), ord("1"))).all():
            raise InputError(
                f"{path}: expected {count} x 784 zeros and ones, but it holds {values.size} characters or others; "
                "delete it to download it again"
            )
        return Part((values == ord("1")).reshape(count, 1, 28, 28))

    return Source(name, part("train"), part("valid"), part("test"))


def _download_binarized_mnist(root: str) -> None:
    from torchvision.datasets.utils import download_url

    for split in BINARIZED_MNIST_IMAGES:
        url = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_"
        download_url(f"{url}{split}.amat", f"{root}/BinarizedMNIST")


NAMED: dict[str, _Named] = {
    "digits": _Named(_digits),
    "mnist": _idx("MNIST", ("train", "t10k")),
    "fashion-mnist": _idx("FashionMNIST", ("train", "t10k")),
    "kmnist": _idx("KMNIST", ("train", "t10k")),
    "emnist": _idx("EMNIST", ("emnist-balanced-train", "emnist-balanced-test"), upright=False),
    "omniglot": _Named(
        _omniglot, ("omniglot-py/images_background", "omniglot-py/images_evaluation"), _download_omniglot
    ),
    "cifar10": _Named(_cifar10, _CIFAR10_FILES, _download_cifar10),
    "svhn": _Named(_svhn, ("train_32x32.mat", "test_32x32.mat"), _download_svhn),
    "binarized-mnist": _Named(
        _binarized_mnist,
        tuple(f"BinarizedMNIST/binarized_mnist_{split}.amat" for split in BINARIZED_MNIST_IMAGES),
        _download_binarized_mnist,
    ),
}
