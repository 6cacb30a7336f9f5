"""The figures of each kind of model, and that each says what it shows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pyrolatent import (
    PCA,
    VAE,
    Autoencoder,
    ConditionalVAE,
    DiscreteVAE,
    GenerativeNetwork,
    HierarchicalVAE,
    LinearGaussian,
    MarkovNetwork,
    RestrictedBoltzmannMachine,
    SemiSupervisedVAE,
    check,
    load_data,
    pictures,
    sample,
)
from pyrolatent.checks import khat_threshold

pytestmark = pytest.mark.usefixtures("few_cells")
BITS = np.random.default_rng(0).integers(2, size=(300, 4)).astype(np.uint8)
CLASSES = np.arange(300) % 3
DRAWN = ["samples", "sample_means"]
KINDS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "vae": (lambda: VAE((4,), latent_dim=3), [*DRAWN, "latent_grid"]),
    "conditional": (lambda: ConditionalVAE((4,), 3, latent_dim=2), [*DRAWN, "latent_grid", "label_grid"]),
    "semi-supervised": (lambda: SemiSupervisedVAE((4,), 3, latent_dim=2), [*DRAWN, "latent_grid", "label_grid"]),
    "hierarchical": (lambda: HierarchicalVAE((4,), latent_dims=(3, 2)), DRAWN),
    "discrete": (lambda: DiscreteVAE((4,), latent_dims=(3,)), DRAWN),
    "no encoder": (lambda: GenerativeNetwork((4,), latent_dim=2), [*DRAWN, "latent_grid"]),
    "flow without encoder": (
        lambda: GenerativeNetwork((4,), latent_dim=2, prior="coupling"), [*DRAWN, "latent_grid"]
    ),
    "linear": (lambda: LinearGaussian((4,), latent_dim=1), [*DRAWN, "latent_grid"]),
    "autoencoder": (lambda: Autoencoder((4,), latent_dim=2), []),
    "pca": (lambda: PCA((4,), latent_dim=2), []),
}  # fmt: skip
MACHINES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "rbm": (lambda: RestrictedBoltzmannMachine((4,), hidden=3), ["filters", "chains", *DRAWN]),
    "network": (lambda: MarkovNetwork((4,), cliques=[[1, 2], [3, 4]]), ["chains", "samples"]),
}


def titles(model: Any, **options: Any) -> dict[str, str]:
    figures = pictures.plot(model, load_data(BITS, labels=CLASSES, **options), [])
    return {name: figure.get_suptitle() or figure.axes[0].get_title() for name, figure in figures.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_figure_of_a_kind_of_model_says_what_it_shows(name: str) -> None:
    build, drawn = KINDS[name]
    said = titles(build())
    assert [*said] == ["reconstructions", *drawn, "embedding"]
    assert all(said.values())
    if drawn:
        y = ", y" if name in ("conditional", "semi-supervised") else ""
        assert said["samples"].startswith(f"draws of x ~ p(x | z{y})")
        assert said["sample_means"].startswith(f"E[x | z{y}] at draws of z ~ p(z)")
        assert "q(z | x)" in said["reconstructions"]
    assert ("does not depend on x" in said["reconstructions"]) == ("without" in name or name == "no encoder")
    if "latent_grid" in drawn:
        assert ("other dimensions" in said["latent_grid"]) == (name == "vae")
        assert said["latent_grid"].endswith("; y = 0") == bool(y)
    if name == "conditional":
        assert said["samples"].endswith("; the classes in turn")


@pytest.mark.parametrize("name", MACHINES)
def test_figures_of_energies_say_what_they_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "WATCHED", [0, 1, 2])
    monkeypatch.setattr(pictures, "TEMPERATURES", 10)
    build, drawn = MACHINES[name]
    figures = pictures.plot(build(), load_data(BITS), [])
    assert [*figures] == [*drawn, "free_energies", "log_z"]
    assert figures["samples"].get_suptitle() == "draws of x"
    labels = [tick.get_text() for tick in figures["chains"].axes[0].get_yticklabels()]
    assert labels == ["test data"] * 4 + ["base"] * 4
    means = "E[x | h]" if name == "rbm" else "draws"
    assert figures["chains"].get_suptitle().startswith(means)
    if name == "rbm":
        assert figures["sample_means"].get_suptitle().startswith(means)


@pytest.mark.parametrize("name", ["no encoder", "flow without encoder"])
def test_the_embedding_of_a_model_without_encoder_says_so(name: str) -> None:
    figure = pictures.plot(KINDS[name][0](), load_data(BITS), [])["embedding"]
    assert "q(z | x) does not depend on x" in figure.axes[0].texts[0].get_text()
    assert not figure.axes[0].collections


def test_classes_are_called_by_their_names(tmp_path: Any) -> None:
    path = tmp_path / "named.csv"
    rows = [f"{','.join(map(str, row))},{'abc'[c]}" for row, c in zip(BITS, CLASSES, strict=True)]
    path.write_text("\n".join(["p,q,r,s,kind", *rows]))
    figures = pictures.plot(ConditionalVAE((4,), 3, latent_dim=2), load_data(path, labels="kind"), [])
    assert figures["latent_grid"].get_suptitle().endswith("y = a")
    assert [t.get_text() for t in figures["label_grid"].axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in figures["embedding"].legends[0].get_texts()] == ["a", "b", "c"]


def test_what_is_not_observed_is_not_drawn_as_zero() -> None:
    x = np.random.default_rng(0).integers(2, size=(200, 1, 4, 4)).astype(np.uint8)
    data = load_data(x, mask=np.random.default_rng(1).random(x.shape) < 0.7)
    figure = pictures.plot(VAE((1, 4, 4), latent_dim=2), data, [])["reconstructions"]
    mask = data.test.mask
    assert mask is not None
    for image, seen in zip(figure.axes[0].images, mask[:10, 0], strict=False):
        assert (np.ma.getmaskarray(image.get_array()) == ~seen.numpy()).all()


@pytest.mark.usefixtures("few_steps")
def test_the_line_of_k_hat_is_the_threshold_that_was_held() -> None:
    model = VAE((4,), latent_dim=2)
    found = check(model, load_data(BITS), size=20, draws=100, simulations=50, annealed=0)
    (axes,) = (axes for axes in found.figure().axes if axes.get_xlabel() == "k-hat")
    (line,) = axes.lines
    assert khat_threshold(100) == 0.5
    assert_allclose(line.get_xdata(), 0.5)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["too large above 0.50"]


def test_a_printed_model_says_that_numbers_are_scales() -> None:
    """A precision of 4 is a standard deviation of 1/2, of the prior as of draws from it."""
    model = LinearGaussian((3,), latent_dim=2, precision=4.0, noise=0.25)
    assert "p(z)     = Normal(loc=0, scale=0.5)" in str(model)
    assert "p(x | z) = Normal(loc=W z + b, scale=0.25)" in str(model)
    model.likelihood.weight.data.zero_()
    assert abs(sample(model, 100_000).std() - 0.25) < 5 * 0.25 / (2 * 300_000) ** 0.5
    assert abs(model.prior().sample((100_000,)).std() - 0.5) < 5 * 0.5 / (2 * 200_000) ** 0.5
    assert "p(x | z, y)" in str(ConditionalVAE((4,), 3, latent_dim=2))
