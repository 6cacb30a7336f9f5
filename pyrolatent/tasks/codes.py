"""What a fitted model says of datapoints: their codes, and what it makes of them."""

from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrolatent.declaration import choices
from pyrolatent.errors import InputError, at_least_one, validate_options
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import draw, posterior_means
from pyrolatent.inference.rules import require_latents
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability

What = Literal["means", "draws", "parameters"]
"""What `encode` returns."""
DRAWS = 100
"""Number of draws for posterior means without closed form; their error is a tenth of the standard deviation."""


@torch.no_grad()
def means(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> dict[str, Tensor]:
    """The posterior mean of each latent site, (batch, ...), which represents a datapoint.

    E[z_l | x] = E[E[z_l | x, the sites that the guide draws before it]]. The inner mean is exact if it has a closed
    form, the outer one if the site depends on no draw or on states that are summed out. Otherwise they are means of 100
    draws, with an error of at most a tenth of the posterior's standard deviation. The draws are the same in every call.

    Raises:
        InputError: the model has no posterior, no datapoint has latents of its own, or an argument does not fit it.
    """
    require_latents(model)
    inputs = as_inputs(model, x, y, mask)
    if not model.encodes_datapoints:
        raise InputError(
            f"no datapoint has latents of its own, beside {', '.join(model.global_sites)} outside the plate over "
            "datapoints"
            + "; sample draws x, and decode({}) is p(x) at the mean of what lies outside"
            * model.observes_x
        )
    with evaluating(model, 0), pyro.validation_enabled(False):
        if Capability.POSTERIOR not in model.offers:
            return {site: code.mean for site, code in model.encode(*inputs).items()}
        return posterior_means(model, inputs, DRAWS)


@torch.no_grad()
def encode(
    model: Any,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    what: What = "means",
    draws: int = 10,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What q(z | x) says of each datapoint, by latent site.

    Args:
        model: a fitted model.
        x: data (batch, *event_shape); NaN is missing.
        y: labels, of models that take any.
        mask: True where x is observed.
        what: "means", as `means` has them, (batch, ...); "draws" of z ~ q(z | x), (draws, batch, ...); or "parameters",
            the numbers of the distribution, (batch, ...) by `site.parameter`, such as `z.loc` and `z.scale`.
        draws: number of draws.
        seed: seed of the draws.

    Returns:
        By site; of a restricted Boltzmann machine p(h = 1 | x), (batch, hidden), by "h".

    Raises:
        InputError: the model has no posterior, or it has no parameters because it is a transformed distribution.
    """
    if what not in get_args(What):
        raise InputError(f"there are no {what!r} of codes; {choices(what, get_args(What))}")
    if Capability.HIDDEN_UNITS in model.offers:
        validate_options(f"the codes of {type(model).__name__}, p(h = 1 | x),", (), {"mask": mask})
        return {"h": model.encode(x, y)}
    if what == "means":
        return means(model, x, y, mask)
    model.require(Capability.POSTERIOR, "its codes are their own means")
    inputs = as_inputs(model, x, y, mask)
    with evaluating(model, seed), pyro.validation_enabled(False):
        if what == "draws":
            at_least_one(draws=draws)
            return draw(model, inputs, draws).latents
        return _parameters(model, inputs)


def _parameters(model: LatentVariableModel, inputs: Inputs) -> dict[str, Tensor]:
    found = {}
    for site, fn in model.encode(*inputs).items():
        entries: Any = fn
        while isinstance(entries, dist.Independent):
            entries = entries.base_dist
        names = [name for name in entries.arg_constraints if torch.is_tensor(getattr(entries, name, None))]
        names = names[:1] if "logits" in names and "probs" in names else names
        if not names or isinstance(entries, dist.TransformedDistribution):
            raise InputError(
                f"the posterior of {site} is a {type(entries).__name__}, which no numbers describe; give what draws"
            )
        shape = entries.batch_shape + entries.event_shape
        for name in names:
            value = getattr(entries, name)
            found[f"{site}.{name}"] = value.expand(shape) if value.dim() <= len(shape) else value
    return found


@torch.no_grad()
def reconstruct(model: LatentVariableModel, x: Any, y: Any = None, mask: Any = None) -> Tensor:
    """E[x | z] at the posterior means of all latent sites, (batch, *event_shape)."""
    return decoded_at(model, means(model, x, y, mask), y)


def decoded_at(model: LatentVariableModel, codes: dict[str, Tensor], y: Any) -> Tensor:
    """E[x | z] at codes of every site, including a latent label."""
    with evaluating(model):
        return model.decode(codes, y if model.conditional else None).mean
