"""The pseudo-likelihood of unnormalised densities, which needs no normaliser."""

import torch
from torch import Tensor

from pyrolatent.models.energies.density import UnnormalisedDensity


@torch.no_grad()
def pseudo_likelihood(model: UnnormalisedDensity, x: Tensor, *, entries: int | None = None) -> Tensor:
    """∑_i log p(x_i | all others), (batch,), nats (Besag 1975), which needs no log Z and is no bound on log p(x).

    Args:
        model: an unnormalised density over discrete x.
        x: data (batch, *event_shape).
        entries: number of entries i drawn per datapoint to estimate the sum; None sums over all.
    """
    assert model.levels is not None
    flat = x.reshape(len(x), -1)
    width = flat.shape[1]
    rows = torch.arange(len(x), device=x.device)
    chosen = (
        torch.arange(width, device=x.device).expand(len(x), -1)
        if entries is None
        else torch.randint(width, (len(x), entries), device=x.device)
    )
    total = torch.zeros(len(x), dtype=flat.dtype, device=x.device)
    for i in chosen.T:
        log_p = []
        for value in range(int(model.levels.max())):
            other = flat.clone()
            other[rows, i] = value
            possible = value < model.levels[i]
            other[rows, i] = torch.where(possible, other[rows, i], 0)
            found = -model.free_energy(other.reshape(x.shape))
            log_p.append(torch.where(possible, found, -torch.inf))
        own = torch.stack(log_p)[flat[rows, i].long(), rows]
        total = total + own - torch.stack(log_p).logsumexp(0)
    return total * (width / chosen.shape[1])
