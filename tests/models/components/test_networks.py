"""Networks: their shapes, how a label enters them, and what each of their options does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, InputError, fit, load_data
from pyrolatent.declaration import build, registered
from pyrolatent.models.components.conditional import Conditional
from pyrolatent.models.components.families import Bernoulli, Normal
from pyrolatent.models.components.networks import MLP, Conv, ResidualConv

CLASSES = 3
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8, 8)}, "conv": {"channels": (4, 6)}, "residual_conv": {"channels": (4, 6)}
}  # fmt: skip
IMAGES = [(1, 7, 5), (3, 28, 28), (2, 1, 1)]
BOTH_WAYS = pytest.mark.parametrize("inwards", [True, False], ids=["inwards", "outwards"])
EVERY = pytest.mark.parametrize("name", SMALL)


def network(
    name: str, inwards: bool = True, image: tuple[int, ...] = (1, 7, 5), label_dim: int = 0, **options: Any
) -> Any:
    shapes = (image, (4,)) if inwards else ((4,), image)
    return build(
        "network", {name: SMALL[name] | options}, input_shape=shapes[0], output_shape=shapes[1], label_dim=label_dim
    )


def inputs(net: Any, batch: int = 5) -> Tensor:
    return torch.randn(batch, *net.input_shape)


def test_every_network_is_tested() -> None:
    assert registered("network").keys() == SMALL.keys()


@BOTH_WAYS
@EVERY
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_shapes_and_gradients(name: str, inwards: bool, image: tuple[int, ...], norm: str) -> None:
    """Every parameter takes part; for one datapoint an output depends on nothing but this datapoint in evaluation."""
    net = network(name, inwards, image, norm=norm)
    x = inputs(net)
    given = net(x)
    assert given.shape == (5, *net.output_shape)
    given.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert sum(bool(p.grad.ne(0).any()) for p in net.parameters()) > 0.7 * len([*net.parameters()])
    net.eval()
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("image", [False, True])
def test_a_norm_normalises(norm: str, image: bool) -> None:
    """Over each datapoint's features or over the batch, to mean 0 and variance 1; 1e-2 is its epsilon's."""
    net: Any = network("conv" if image else "mlp", norm=norm)
    block = net.levels[0][0] if image else net.blocks[0]
    seen: list[Tensor] = []
    block.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    net(10 * inputs(net, 50))
    over = list(range(1, seen[0].dim())) if norm == "layer" else [0, *range(2, seen[0].dim())]
    assert seen[0].mean(over).abs().max() < 1e-4
    assert (seen[0].var(over, correction=0) - 1).abs().max() < 1e-2


@BOTH_WAYS
@EVERY
@pytest.mark.parametrize("label", ["concat", "embed", "film"])
def test_a_label_changes_the_output_of_its_own_datapoint(name: str, inwards: bool, label: str) -> None:
    net = network(name, inwards, label_dim=CLASSES, label=label)
    one, other = (torch.eye(CLASSES)[[c, 2, 2]] for c in (0, 1))
    x = inputs(net, 3)
    difference = (net(x, one) - net(x, other)).flatten(1).abs().sum(1)
    assert difference[0] > 1e-4
    assert difference[1:].max() < 1e-5
    assert bool(net.embedding is not None) == (label == "embed")
    net(x, one).square().sum().backward()
    of_label = [p for key, p in net.named_parameters() if "film" in key or "embedding" in key]
    assert bool(of_label) == (label != "concat")
    assert all(p.grad.ne(0).any() for p in of_label)


def test_concat_is_the_label_beside_the_input() -> None:
    net = MLP((3,), (2,), CLASSES, hidden=())
    x, y = torch.randn(4, 3), torch.eye(CLASSES)[[0, 1, 2, 0]]
    torch.testing.assert_close(net(x, y), torch.cat([x, y], 1) @ net.last.weight.T + net.last.bias)


def test_film_scales_and_shifts_before_the_activation() -> None:
    """h' = a((1 + scale(y)) h + shift(y)), written out."""
    net: Any = MLP((3,), (2,), CLASSES, hidden=(5,), activation="tanh", label="film")
    x, y = torch.randn(4, 3), torch.eye(CLASSES)[[0, 1, 2, 0]]
    scale, shift = net.blocks[0].film(y).chunk(2, 1)
    torch.testing.assert_close(net(x, y), net.last(torch.tanh((1 + scale) * net.blocks[0].layer(x) + shift)))


@EVERY
def test_options_of_every_network_are_validated(name: str) -> None:
    with pytest.raises(InputError, match=r"dropout was given 2\.0"):
        network(name, dropout=2.0)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_dropout_is_off_in_evaluation(name: str) -> None:
    net = network(name, dropout=0.5)
    x = inputs(net)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_residual_layers_add_their_input_where_the_widths_agree() -> None:
    net: Any = MLP((3,), (2,), hidden=(5, 5), activation="tanh", residual=True)
    x = torch.randn(4, 3)
    first = torch.tanh(net.blocks[0].layer(x))
    torch.testing.assert_close(net(x), net.last(first + torch.tanh(net.blocks[1].layer(first))))


def test_residual_conv_is_conv_with_residual_blocks() -> None:
    one = ResidualConv((1, 7, 5), (4,), channels=(4, 6), blocks=2)
    other = Conv((1, 7, 5), (4,), channels=(4, 6), residual=2, norm="layer", activation="silu")
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, 1, 7, 5)
    assert torch.equal(one(x), other(x))
    assert [len(level) for level in one.levels] == [3, 3]


def test_activations_one_for_each_layer_and_at_the_end() -> None:
    net: Any = MLP((3,), (2,), hidden=(5, 4), activation=("tanh", "relu"), output_activation="sigmoid")
    x = torch.randn(6, 3)
    hidden = torch.relu(net.blocks[1].layer(torch.tanh(net.blocks[0].layer(x))))
    torch.testing.assert_close(net(x), torch.sigmoid(net.last(hidden)))
    with pytest.raises(InputError, match="3 activations for 2 hidden layers"):
        MLP((3,), (2,), hidden=(5, 4), activation=("tanh", "relu", "relu"))


SCHEMES: dict[str, Callable[[int, int], float]] = {
    "xavier_uniform": lambda before, after: (2 / (before + after)) ** 0.5,
    "xavier_normal": lambda before, after: (2 / (before + after)) ** 0.5,
    "kaiming_uniform": lambda before, after: (2 / before) ** 0.5,
    "kaiming_normal": lambda before, after: (2 / before) ** 0.5,
    "orthogonal": lambda before, after: max(before, after) ** -0.5,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_of_the_weights_is_applied(scheme: Any) -> None:
    """Standard deviations of 20,000 weights, known to 1% (that of an orthogonal matrix exactly); biases are 0."""
    net: Any = MLP((200,), (3,), hidden=(100,), init=scheme)
    weight = net.blocks[0].layer.weight
    assert weight.std().item() == pytest.approx(SCHEMES[scheme](200, 100), rel=0.03)
    assert all(module.bias.eq(0).all() for module in net.modules() if isinstance(module, nn.Linear))
    if scheme == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(100), atol=1e-5, rtol=0)
    if scheme.endswith("uniform"):  # the ends of the interval are at sqrt(3) standard deviations
        assert weight.abs().max().item() == pytest.approx(3**0.5 * SCHEMES[scheme](200, 100), rel=0.01)
    convolution: Any = Conv((1, 7, 5), (4,), channels=(64,), init="kaiming_normal").levels[0][0].layer
    assert convolution.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=4 / (2 * 576) ** 0.5)


def test_networks_of_the_user_s_own() -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(35, 4))
    model = VAE((1, 7, 5), latent_dim=2, encoder=own)
    assert model.encode(torch.rand(3, 1, 7, 5))["z"].event_shape == (2,)
    with pytest.raises(InputError, match=r"gives \(5,\).*over \(2,\) needs \(4,\)"):
        VAE((1, 7, 5), latent_dim=2, encoder=nn.Sequential(nn.Flatten(), nn.Linear(35, 5)))
    with pytest.raises(InputError, match=r"does not take inputs of the shape \(1, 7, 5\).*needs \(4,\)"):
        VAE((1, 7, 5), latent_dim=2, encoder=nn.Sequential(nn.Flatten(), nn.Linear(36, 4)))
    with pytest.raises(InputError, match=r"inputs of the shape \(1, 7, 5\) and labels \(3,\)"):
        Conditional(own, Normal((2,)), (1, 7, 5), CLASSES)


@pytest.mark.parametrize("name", ["conv", "residual_conv"])
def test_convolutions_between_two_vectors_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"was given the shapes \(4,\) and \(6,\); declare mlp"):
        build("network", name, input_shape=(4,), output_shape=(6,))


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="kernel was 4; give an odd width"):
        Conv((1, 7, 5), (4,), kernel=4)


def initial_mean(x: Tensor, likelihood: Any, decoder: Any) -> Tensor:
    """The decoder's mean with all that depends on z taken out, after `initialise`."""
    model: Any = VAE(tuple(x.shape[1:]), latent_dim=2, likelihood=likelihood, decoder=decoder, start_at_data=True)
    model.likelihood.initialise(x)
    model.likelihood.network.last.weight.data.zero_()
    with torch.no_grad():
        return model.decode(torch.randn(1, 2)).mean[0]


@pytest.mark.parametrize("likelihood", ["bernoulli", {"normal": {"scale": "learned"}}, {"normal": {"scale": 0.3}}])
def test_start_at_data_makes_the_initial_mean_that_of_the_data(likelihood: Any) -> None:
    """To 0.01: the maximum-likelihood constant is the mean of each element, from 200 steps of Adam."""
    x = (torch.rand(500, 6) < torch.linspace(0.1, 0.9, 6)).float()
    assert (initial_mean(x, likelihood, "mlp") - x.mean(0)).abs().max() < 0.01


def test_a_convolution_starts_at_the_mean_over_all_places() -> None:
    """Its last bias is one number a channel, so that of the logits' mean."""
    x = (torch.rand(500, 2, 3, 4) < torch.tensor([0.2, 0.7])[:, None, None]).float()
    found = initial_mean(x, "bernoulli", {"conv": {"channels": [4]}})
    assert (found - torch.logit(x.mean(0)).mean((1, 2)).sigmoid()[:, None, None]).abs().max() < 0.01


def test_fit_starts_at_the_data_once() -> None:
    x = (torch.rand(300, 6) < 0.9).float().numpy()
    model: Any = VAE((6,), latent_dim=2, start_at_data=True)
    fit(model, load_data(x), progress=False, epochs=1, optimizer={"SGD": {"lr": 1e-6}})
    assert torch.sigmoid(model.likelihood.network.last.bias).mean().item() == pytest.approx(0.9, abs=0.03)
    with pytest.raises(InputError, match="has no set_output"):
        Conditional(nn.Linear(2, 6), Bernoulli((6,)), (2,), start_at_data=True)


def test_grey_values_of_a_cross_entropy_start_at_the_data() -> None:
    data = load_data(torch.rand(60, 6).numpy(), binarize="relaxed")
    fit(VAE((6,), latent_dim=2, start_at_data=True), data, progress=False, epochs=1)


def test_what_is_not_observed_does_not_move_the_start() -> None:
    """The means of what is observed, of at least 30 values of standard deviation 1."""
    x, mask = torch.randn(200, 4) + 5, torch.rand(200, 4) < 0.4
    model: Any = VAE((4,), latent_dim=2, likelihood={"normal": {"scale": 1.0}}, start_at_data=True)
    fit(model, load_data(x.numpy(), mask=mask.numpy()), progress=False, epochs=1, optimizer={"SGD": {"lr": 1e-9}})
    assert (model.likelihood.network.last.bias - 5).abs().max() < 4 / 30**0.5
