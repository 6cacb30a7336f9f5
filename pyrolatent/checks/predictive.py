"""What a model predicts against what is there: replicated data sets, held-out entries, nearest neighbours."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import scipy.stats
import torch
from torch import Tensor

from pyrolatent.checks.draws import draw, simulate
from pyrolatent.inference.draws import weighed_draws
from pyrolatent.inference.objectives import Inputs
from pyrolatent.inference.weights import weigh
from pyrolatent.models.latent import LatentVariableModel

Array = npt.NDArray[np.float64]
Statistic = Callable[[Tensor], Tensor]
CORRELATED = 50
"""Entries whose pairwise correlations are looked at."""


def _correlations(x: Tensor) -> Tensor:
    """Pairwise correlations of evenly spaced entries, (pairs,); 0 where an entry is constant."""
    flat = x.flatten(1).double()
    chosen = flat[:, torch.linspace(0, flat.shape[1] - 1, min(flat.shape[1], CORRELATED)).round().long().to(x.device)]
    centred = chosen - chosen.mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-12)
    above = torch.triu_indices(chosen.shape[1], chosen.shape[1], 1)
    return (unit.T @ unit)[above[0], above[1]]


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: x.double().mean().reshape(1),
    "spread": lambda x: x.double().std().reshape(1),
    "share of zeros": lambda x: (x == 0).double().mean().reshape(1),
    "means of entries": lambda x: x.flatten(1).double().mean(0),
    "variances of entries": lambda x: x.flatten(1).double().var(0),
    "correlations of entries": _correlations,
}
"""Statistics of a data set (n, *event_shape), each one number or a vector of them."""


@torch.no_grad()
def replicate(model: LatentVariableModel, inputs: Inputs, *, posterior: bool) -> Tensor:
    """A data set of the same size, x_rep ~ p(x | z), with z ~ q(z | x_n) or z ~ p(z), (n, *event_shape).

    Args:
        model: a fitted model.
        inputs: x, y, mask of the data set.
        posterior: whether z is drawn given x.
    """
    x, y, _ = inputs
    if not posterior:
        return simulate(model, len(x), y)[0]
    latents = {site: value[0] for site, value in draw(model, inputs, 1).latents.items()}
    return model.decode(latents, y).sample()


def predictive_p_values(
    observed: Mapping[str, Tensor], replicated: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, tuple[float, Array]]]:
    """How extreme each statistic of the data is among those of replicated data sets.

    A vector T is reduced to its distance sqrt(mean_d ((T_d - m_d) / s_d)^2) from the mean of the first half of the
    replicates, over entries that vary there, and only larger distances are extreme; a number is extreme on both sides.
    p-values are those of one more draw from a normal distribution estimated from the replicates: sums over a data set
    are nearly normal.

    Args:
        observed: by name, (k,).
        replicated: by name, (replicates, k).

    Returns:
        p-values by name, and what they compare: the data's number and the replicates'.
    """
    p_values, compared = {}, {}
    for name, values in replicated.items():
        truth, draws = (value.double().cpu().numpy() for value in (observed[name], values))
        vector, half = draws.shape[1] > 1, len(draws) // 2
        if vector:
            centre, scale = draws[:half].mean(0), draws[:half].std(0)
            rest = np.concatenate([truth[None], draws[half:]])[:, scale > 0]
            truth, *draws = np.sqrt((((rest - centre[scale > 0]) / scale[scale > 0]) ** 2).mean(-1))
        number, sample = float(np.squeeze(truth)), np.asarray(draws).squeeze()
        spread = sample.std(ddof=1) * np.sqrt(1 + 1 / len(sample))
        if spread > 0:
            tail = float(scipy.stats.t.sf((number - sample.mean()) / spread, len(sample) - 1))
            p_values[name] = tail if vector else 2 * min(tail, 1 - tail)
        else:
            p_values[name] = float(np.isclose(number, sample[0]))
        compared[name] = (number, sample)
    return p_values, compared


@torch.no_grad()
def conditional_draws(model: LatentVariableModel, inputs: Inputs, entry: int, *, draws: int, particles: int) -> Tensor:
    """Draws of one entry of each datapoint given its others, (draws, batch), by importance resampling.

    Latents given the others are resampled by their weights, as `weighed_draws` draws them, exact as particles grow;
    what is predicted was then not seen.

    Args:
        model: a model whose likelihood factorises over entries.
        inputs: x, y, mask.
        entry: index into the flattened event.
        draws: number of draws.
        particles: number K of latents that are resampled.
    """
    x, y, mask = inputs
    others = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.clone()
    others.flatten(1)[:, entry] = False
    if weigh(model.generate, model.infer, x, y, others).summed_out:
        found = draw(model, (x, y, others), particles)
        log_weights, proposed = found.log_weights, found.latents
    else:
        log_weights, proposed = weighed_draws(model, (x, y, others), particles)
    chosen = dist.Categorical(logits=log_weights.T).sample(torch.Size([draws]))
    batch = torch.arange(len(x), device=x.device)
    latents = {site: value[chosen, batch] for site, value in proposed.items()}
    return model.decode(latents, y).sample().flatten(2)[..., entry]


def nearest_distances(points: Tensor, among: Tensor, floats: int = 2**26) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each point to the nearest of others, (n,), and its index, (n,).

    Args:
        points: (n, *event_shape).
        among: (m, *event_shape).
        floats: bound on the distances held at a time.
    """
    found = []
    for rows in points.flatten(1).split(max(1, floats // len(among))):
        found.append(torch.cdist(rows, among.flatten(1)).min(1))
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def nearer(distances: Tensor, usual: Tensor) -> tuple[float, float]:
    """How often a distance of the first kind is below one of the second, and the p-value of that by Mann and Whitney.

    With distances of samples and of held-out datapoints to the nearest training datapoint it is the test for copied
    data of Meehan et al. 2020 (2004.05675).

    Args:
        distances: (n,).
        usual: (m,).
    """
    one, other = (values.double().cpu().numpy() for values in (distances, usual))
    statistic, p_value = scipy.stats.mannwhitneyu(one, other, alternative="less")
    return 1 - float(statistic) / (len(one) * len(other)), float(p_value)
