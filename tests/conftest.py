"""What several tests share: a fixed seed, a clean parameter store, small data and small models."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pyrolatent import VAE, Data, load_data
from pyrolatent.figures.latent import samples
from pyrolatent.inference.refine import refine

# Models this small gain nothing from threads, and lose much where other processes want the same cores.
torch.set_num_threads(1)

EVENT = (6,)
SMALL = {"mlp": {"hidden": [8]}}
OWN = '''
from torch import nn

class Scaled(nn.Module):
    """A prior of the user's own."""

    def __init__(self, latent_dim: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.latent_dim, self.width = latent_dim, width

class Asking(nn.Module):
    def __init__(self, latent_dim: int, tempo: float) -> None:
        super().__init__()

class Content(nn.Module):
    def __init__(self, latent_dim: int, tempo: float = 2.0) -> None:
        super().__init__()
        self.latent_dim, self.tempo = latent_dim, tempo

number = 3
'''


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test begins at the same seed with an empty parameter store, and with Pyro's validation on."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks refine posteriors in ten steps, where what the inference gap is does not matter."""
    monkeypatch.setattr(
        "pyrolatent.checks.inference_gap.refine", lambda *args, **options: refine(*args, **options | {"steps": 10})
    )


@pytest.fixture
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have a few cells, where what is seen in each does not matter."""
    monkeypatch.setattr("pyrolatent.pictures.SIDE", 2)
    monkeypatch.setattr("pyrolatent.figures.latent.samples", lambda values, title="": samples(values[:4], title))


@pytest.fixture
def binary_data() -> Data:
    """Fifty datapoints of six binary features in two clusters: 41 to train, 4 to validate, 5 to test."""
    random = np.random.default_rng(0)
    likely = np.array([[0.9, 0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]])
    x = random.random((50, *EVENT)) < likely[random.integers(2, size=50)]
    return load_data(x.astype(np.uint8))


@pytest.fixture
def vae() -> Callable[..., VAE]:
    """Builds a small model over six features, the same for the same seed."""

    def build(seed: int = 0, **options: Any) -> VAE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VAE(EVENT, **({"latent_dim": 2, "encoder": SMALL, "decoder": SMALL} | options))

    return build


@pytest.fixture
def parameters() -> Callable[[torch.nn.Module], torch.Tensor]:
    """A copy of all parameters of a module as one vector."""
    return lambda module: torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module with components of the user's own."""
    (tmp_path / "components_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "components_of_mine"
    sys.modules.pop("components_of_mine", None)
