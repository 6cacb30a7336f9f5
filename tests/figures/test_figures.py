"""Figures show the numbers that they were given, where their labels say so."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib import color_sequences
from matplotlib.colors import to_rgb
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from pyrolatent.errors import InputError
from pyrolatent.figures import canvas
from pyrolatent.figures import latent as figures


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().images[:40] / 16, dtype=torch.float32)[:, None]


def shown(fig):
    """The images of the only axes, with the column and row of the cell in which each stands."""
    (axes,) = fig.axes
    cells = [(np.floor(left + 0.5), np.floor(top + 0.5)) for left, _, _, top in (i.get_extent() for i in axes.images)]
    return np.array([i.get_array() for i in axes.images]), np.array(cells)


def caption(fig):
    return fig.get_supxlabel()


def history(elbo):
    return [
        {"epoch": i, "train_loss": 110.0 - i, "validation_elbo": e, "learning_rate": 1e-3, "seconds": 1.0}
        for i, e in enumerate(elbo, start=1)
    ]


def test_training_curve_turns_the_loss_into_a_bound_and_skips_epochs_without_validation():
    fig = figures.training_curve(history([-120.0, None, -111.5, -112.0]))
    (axes,) = fig.axes
    training, validation = axes.lines
    assert_array_equal(training.get_xydata(), [[1, -109], [2, -108], [3, -107], [4, -106]])
    assert_array_equal(validation.get_xydata(), [[1, -120], [3, -111.5], [4, -112]])
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "bound [nats per datapoint], higher is better"
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["training (−train_loss)", "validation ELBO (best −111.50, epoch 3)"]


def test_training_curve_of_one_epoch_without_validation_is_a_visible_point():
    (axes,) = figures.training_curve(history([None])).axes
    (line,) = axes.lines
    assert_array_equal(line.get_xydata(), [[1, -109]])
    assert line.get_marker() == "o"
    assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]


def test_training_curve_of_a_model_without_density_is_of_squared_errors():
    rows = [{"epoch": i, "train_loss": 5.0 - i, "validation_elbo": None, "validation_loss": 6.0 - i} for i in (1, 2)]
    fig = figures.training_curve(rows)
    (axes,) = fig.axes
    training, validation = axes.lines
    assert_array_equal(training.get_xydata(), [[1, 4], [2, 3]])
    assert_array_equal(validation.get_xydata(), [[1, 5], [2, 4]])
    assert axes.get_ylabel() == "squared error per datapoint, lower is better"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["training", "validation (best 4.00, epoch 2)"]


def test_training_curve_refuses_an_empty_history():
    with pytest.raises(InputError, match="0 epochs"):
        figures.training_curve([])


@pytest.mark.parametrize("n", [1, 3, 10, 23])
def test_reconstructions_stand_below_their_originals(digits, n):
    fig = figures.reconstructions(digits[:n], 1 - digits[:n])
    images, cells = shown(fig)
    assert_array_equal(images, np.concatenate([digits[:n, 0], 1 - digits[:n, 0]]))
    assert_array_equal(cells[:n, 0], np.arange(n) % 10)
    assert_array_equal(cells[:n] + [0, 1], cells[n:])
    (axes,) = fig.axes
    lines = -(-n // 10)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["original", "reconstruction"] * lines
    assert caption(fig) == ""


def test_reconstructions_share_one_scale_and_say_so(digits):
    fig = figures.reconstructions(digits[:2], digits[:2] * 2 - 1)
    assert [image.get_clim() for image in fig.axes[0].images] == [(-1, 1)] * 4
    assert caption(fig) == "values scaled from [−1, 1] to [0, 1]"


def test_what_is_missing_is_blue_and_said(digits):
    x = digits[:1].clone()
    x[..., :4, :] = torch.nan
    fig = figures.reconstructions(x, digits[:1])
    original = fig.axes[0].images[0]
    rgba = original.to_rgba(original.get_array())
    assert_allclose(rgba[:4, :, :3], np.broadcast_to(canvas.MISSING, (4, 8, 3)))
    assert_allclose(rgba[4:, :, 0], x[0, 0, 4:], atol=1 / 255)
    assert caption(fig) == "blue: no value"
    colour = shown(figures.samples(x.expand(1, 3, 8, 8)))[0]
    assert_allclose(colour[0, :4], np.broadcast_to(canvas.MISSING, (4, 8, 3)))


def test_reconstructions_in_the_plane_are_points_joined_to_their_originals():
    x, mean = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.array([[0.0, 2.0], [2.0, 2.0], [3.0, 5.0]])
    (axes,) = figures.reconstructions(x, mean).axes
    originals, means = axes.collections
    assert_array_equal(originals.get_offsets(), x)
    assert_array_equal(means.get_offsets(), mean)
    assert_array_equal([line.get_xydata() for line in axes.lines], np.stack([x, mean], axis=1))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["original", "reconstruction"]


def test_reconstructions_refuse_different_shapes(digits):
    with pytest.raises(InputError, match=r"\(2, 1, 8, 8\) and means \(3, 1, 8, 8\)"):
        figures.reconstructions(digits[:2], digits[:3])


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (3, 2), (7, 3), (16, 4)])
def test_samples_fill_a_grid_line_by_line(digits, n, columns):
    images, cells = shown(figures.samples(digits[:n, 0].to(torch.bfloat16)))  # sixteenths are exact in bfloat16
    assert_array_equal(images, digits[:n, 0])
    assert_array_equal(cells, [(i % columns, i // columns) for i in range(n)])


def test_samples_in_colour_keep_their_channels(digits):
    x = torch.cat([digits, digits / 2, 1 - digits], dim=1)[:4]
    images, _ = shown(figures.samples(x))
    assert_allclose(images, x.permute(0, 2, 3, 1))
    fig = figures.samples(4 * x - 1)
    assert_allclose(shown(fig)[0], x.permute(0, 2, 3, 1), rtol=1e-6)
    assert caption(fig) == "values scaled from [−1, 3] to [0, 1]"


def test_samples_in_the_plane_are_points():
    x = np.arange(10.0).reshape(5, 2)
    (axes,) = figures.samples(x).axes
    assert_array_equal(axes.collections[0].get_offsets(), x)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$x_1$", "$x_2$")


def test_short_vectors_are_bars_on_zero():
    x = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    fig = figures.samples(x)
    (axes,) = fig.axes
    assert len(axes.patches) == 6  # a background and a profile each
    for value, bars in zip(x, axes.patches[1::2], strict=True):
        heights, _, zero = bars.get_data()
        assert_allclose(zero - heights, 0.8 * value / 5)  # the rows grow downwards; the values range over 5
    assert caption(fig) == "across: entries 1 to 3; upwards: values from −2 to 3"


def test_long_vectors_are_lines():
    x = np.sin(np.linspace(0, 6, 3 * 70).reshape(3, 70))
    fig = figures.samples(x)
    profiles = [line.get_ydata() for line in fig.axes[0].lines if len(line.get_ydata()) == 70]
    for value, y in zip(x, profiles, strict=True):
        assert_allclose(y[0] - y, 0.8 * (value - value[0]) / np.ptp(x), atol=1e-12)
    assert caption(fig).startswith("across: entries 1 to 70; ")


@pytest.mark.parametrize("event_shape", [(), (1,), (5,), (64,), (65,), (2, 3, 4), (4, 2, 2, 2)])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_any_event_shape_and_constant_values_are_drawn(event_shape, value, tmp_path):
    figures.samples(np.full((3, *event_shape), value)).savefig(tmp_path / "samples.png")
    figures.samples(np.full((1, 3, 4, 5), value)).savefig(tmp_path / "samples.pdf")


def test_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match=r"\(0, 1, 8, 8\)"):
        figures.samples(torch.zeros(0, 1, 8, 8))


def test_latent_grid_places_values_where_its_axes_say():
    first, second = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-2.0, 0.5, 2.0])
    z = torch.cartesian_prod(first, second)
    values = ((z + 2) / 4)[:, :, None].expand(9, 2, 5)  # an image of two rows: z₁ and z₂
    fig = figures.latent_grid(values, 3, torch.stack([first, second]))
    (axes,) = fig.axes
    across = dict(zip(axes.get_xticks(), (t.get_text() for t in axes.get_xticklabels()), strict=True))
    up = dict(zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True))
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        z1, z2 = 4 * image.get_array()[:, 0] - 2
        assert float(across[(left + right) / 2].replace("−", "-")) == z1
        assert float(up[(bottom + top) / 2].replace("−", "-")) == z2
    assert axes.yaxis_inverted()
    assert up[0.5] == "2.00"  # z₂ grows upwards
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_{0}$", "$z_{1}$")


def test_latent_grid_has_no_seams(digits):
    (axes,) = figures.latent_grid(digits[:36], 6, torch.linspace(-2, 2, 6)).axes
    left, right, bottom, top = np.array([image.get_extent() for image in axes.images]).T
    assert_array_equal(right - left, 1)
    assert_array_equal(bottom - top, 1)
    assert len(set(zip(left, top, strict=True))) == 36


def test_latent_grid_of_vectors_one_point_and_many_labels(tmp_path):
    figures.latent_grid(torch.rand(1, 7), 1, torch.zeros(1)).savefig(tmp_path / "one.png")
    (axes,) = figures.latent_grid(torch.rand(31 * 31, 2, 2), 31, torch.linspace(-3, 3, 31)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][:2] == ["−3.00", "−2.40"]


def test_latent_grid_of_one_dimension_is_a_line(digits):
    fig = figures.latent_grid(digits[:3], 3, torch.tensor([[-1.0, 0.0, 1.0]]), title="of the only dimension")
    images, cells = shown(fig)
    assert_array_equal(images, digits[:3, 0])
    assert_array_equal(cells, [(0, 0), (1, 0), (2, 0)])
    (axes,) = fig.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["−1.00", "0.00", "1.00"]
    assert (axes.get_xlabel(), axes.get_ylabel(), list(axes.get_yticks())) == ("$z$", "", [])
    assert fig.get_suptitle() == "of the only dimension"


def test_latent_grid_refuses_what_does_not_fit(digits):
    with pytest.raises(InputError, match="holds 8 entries; a grid of side 3 needs 9"):
        figures.latent_grid(digits[:8], 3, torch.zeros(3))
    with pytest.raises(InputError, match=r"\(4,\); expected \(3,\), \(1, 3\) or \(2, 3\)"):
        figures.latent_grid(digits[:9], 3, torch.zeros(4))


def test_embedding_gives_each_class_its_colour():
    codes = np.random.default_rng(0).normal(size=(50, 2))
    labels = np.array([7, 3, 5, 3, 7] * 10)
    fig = figures.embedding(torch.tensor(codes), torch.tensor(labels), title="Codes of the test set")
    (axes,) = fig.axes
    (points,) = axes.collections
    assert_array_equal(points.get_offsets(), codes)
    assert axes.get_title() == "Codes of the test set"
    legend = {
        int(text.get_text()): to_rgb(handle.get_color())
        for text, handle in zip(fig.legends[0].get_texts(), fig.legends[0].get_lines(), strict=True)
    }
    assert list(legend) == [3, 5, 7]
    assert len(set(legend.values())) == 3
    assert_allclose(points.get_facecolors()[:, :3], [legend[label] for label in labels])


@pytest.mark.parametrize(("classes", "legend"), [(1, 1), (10, 1), (20, 1), (21, 0)])
def test_embedding_legend_up_to_twenty_classes(classes, legend):
    fig = figures.embedding(np.random.default_rng(0).normal(size=(42, 2)), np.arange(42) % classes)
    assert len(fig.legends) == legend
    assert len(np.unique(fig.axes[0].collections[0].get_facecolors(), axis=0)) == min(classes, 20)
    assert caption(fig) == ("" if legend else "21 classes; colours repeat")


def test_embedding_without_labels_has_one_colour_and_no_legend():
    fig = figures.embedding(np.eye(2))
    (colour,) = fig.axes[0].collections[0].get_facecolors()
    assert_allclose(colour[:3], to_rgb(color_sequences["petroff10"][0]))
    assert not fig.legends


def test_classes_have_names_and_no_two_of_ten_are_alike():
    """Of ten colours no two are greys, whose red, green and blue are nearly one, unless they are dark and light."""
    names = [f"class of {i}" for i in range(10)]
    fig = figures.embedding(np.random.default_rng(0).normal(size=(11, 2)), [*range(10), -1], names=names[:10])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["unknown", *names]
    fig = figures.embedding(np.random.default_rng(0).normal(size=(10, 2)), range(10))
    colours = np.array([to_rgb(handle.get_color()) for handle in fig.legends[0].get_lines()])
    assert len(np.unique(colours, axis=0)) == 10
    greys = np.sort(colours[np.ptp(colours, axis=1) < 0.12].mean(1))
    assert (np.diff(greys) > 0.4).all()


@pytest.mark.parametrize("labels", [None, [0, 1, 2]])
def test_codes_that_are_all_one_are_said_to_be(labels):
    (axes,) = figures.embedding(np.ones((3, 2)), labels).axes
    assert "all 3 codes are equal" in axes.texts[0].get_text()
    assert not axes.collections
    assert figures.embedding(np.ones((1, 2))).axes[0].collections


def test_what_a_figure_shows_stands_above_it(digits):
    for fig in (
        figures.samples(digits[:4], "draws"),
        figures.samples(np.eye(2), "draws"),
        figures.reconstructions(digits[:2], digits[:2], title="draws"),
        figures.reconstructions(np.eye(2), np.eye(2), title="draws"),
        figures.label_grid(digits[:6], 3, ["a", "b", "c"], "draws"),
    ):
        assert fig.get_suptitle() == "draws"
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_codes_of_three_dimensions_are_drawn_in_space():
    codes = np.random.default_rng(0).normal(size=(40, 3))
    points, method = figures.drawable(codes)
    assert_array_equal(points, codes)
    assert method == "all dimensions"
    (axes,) = figures.embedding(points, np.arange(40) % 4).axes
    assert axes.name == "3d"
    assert_array_equal(np.stack(axes.collections[0]._offsets3d, 1), codes)
    assert figures.drawable(codes[:, :1])[1] == "the only dimension"
    (axes,) = figures.embedding(np.ones((3, 3))).axes
    assert "does not depend on x" in axes.texts[0].get_text()


def test_embedding_refuses_codes_outside_the_plane_and_missing_labels():
    with pytest.raises(InputError, match=r"\(4, 4\); expected \(n, 2\) or \(n, 3\)"):
        figures.embedding(np.ones((4, 4)))
    with pytest.raises(InputError, match=r"\(3,\) and there are 4 codes"):
        figures.embedding(np.ones((4, 2)), [1, 2, 3])


def test_project_leaves_up_to_two_dimensions_as_they_are():
    codes = np.random.default_rng(0).normal(size=(30, 2))
    assert_array_equal(figures.project(codes), codes)
    assert_array_equal(figures.project(codes[:, :1]), codes[:, :1] * [1, 0])


def test_project_by_pca_is_the_projection_on_the_leading_singular_vectors(digits):
    codes = digits.flatten(1)
    centred = (codes - codes.mean(0)).double()
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    assert_allclose(np.abs(figures.project(codes, "pca")), (left * scale)[:, :2].abs(), atol=1e-6)


def test_project_by_tsne_is_reproducible_and_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    codes = rng.normal(size=(60, 5)) + 20 * labels[:, None]
    points = figures.project(codes, seed=3)
    assert_array_equal(points, figures.project(codes, seed=3))
    centres = np.stack([points[labels == label].mean(0) for label in (0, 1)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    assert_array_equal(nearest, labels)


def test_project_falls_back_where_tsne_has_too_few_or_equal_codes(digits):
    few = digits[:15].flatten(1)
    assert_array_equal(figures.project(few), PCA(2).fit_transform(few.double()))
    assert_array_equal(figures.project(few[:1]), np.zeros((1, 2)))
    assert_array_equal(figures.project(torch.ones(50, 8)), np.zeros((50, 2)))
    assert figures.project(digits[:16].flatten(1)).shape == (16, 2)


def test_project_refuses_unknown_methods_and_sites_that_are_no_matrix():
    with pytest.raises(InputError, match="'umap'"):
        figures.project(np.ones((4, 3)), "umap")
    with pytest.raises(InputError, match=r"\(4, 3, 2\)"):
        figures.project(np.ones((4, 3, 2)))


def test_figures_are_drawn_in_threads_without_pyplot(digits, tmp_path):
    def draw(i):
        path = tmp_path / f"{i}.png"
        figures.samples(digits[:4]).savefig(path)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(draw, range(8)))) == 1
    if "matplotlib.pyplot" in sys.modules:  # another library may have imported it
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
