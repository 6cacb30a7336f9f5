"""Draws by reparameterization beside their densities: normal, exponential, and gamma by sums of exponentials.

A normal draw is mu + sigma e, e standard normal; an exponential one -log(1 - u) / lambda, u uniform; a gamma one of
whole shape r is a sum of r exponentials. The package draws a gamma of any shape with pathwise gradients. Printed are
the Kolmogorov-Smirnov distances to the distribution functions and, for each number, the derivative of E[x^2] by
autograd through the draws beside the exact one.

    python examples/reparameterizations.py
"""

import argparse

import torch
from matplotlib.figure import Figure
from scipy import stats

from pyrolatent.declaration import build


def main() -> None:
    """Draws, compares and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=100_000)
    size = parser.parse_args().draws
    torch.manual_seed(0)
    mu, sigma, rate = (torch.tensor(number, requires_grad=True) for number in (0.5, 0.8, 1.5))
    shape = torch.tensor(2.5, requires_grad=True)
    gamma = build("posterior", {"gamma": {"rate": 1.5}}, event_shape=(1,)).distribution  # what q(z | x) draws from
    # E[x^2] is mu^2 + sigma^2, 2 / lambda^2, and r (r + 1) / lambda^2.
    drawn = {
        "normal: mu + sigma e": (mu + sigma * torch.randn(size), stats.norm(0.5, 0.8), sigma, 2 * 0.8),
        "exponential: -log(1 - u) / lambda": (
            -torch.log1p(-torch.rand(size)) / rate, stats.expon(scale=1 / 1.5), rate, -4 / 1.5**3,
        ),
        "gamma, r = 3: a sum of exponentials": (
            (-torch.log1p(-torch.rand(3, size)) / rate).sum(0), stats.gamma(3, scale=1 / 1.5), rate, -24 / 1.5**3,
        ),
        "gamma of shape 2.5: pathwise": (
            gamma(shape, torch.tensor(1.5)).rsample((size,)), stats.gamma(2.5, scale=1 / 1.5), shape, 6 / 1.5**2,
        ),
    }  # fmt: skip
    figure = Figure(figsize=(10, 2.6), dpi=110, layout="constrained")
    print(f"{'':<38}{'distance':>10}{'derivative of E[x^2]':>24}{'exact':>10}")
    for axes, (name, (x, law, number, exact)) in zip(figure.subplots(1, 4), drawn.items(), strict=True):
        (slope,) = torch.autograd.grad(x.square().mean(), number)
        values = x.detach().numpy()
        print(f"{name:<38}{stats.kstest(values, law.cdf).statistic:>10.4f}{slope:>24.3f}{exact:>10.3f}")
        grid = torch.linspace(*torch.tensor(law.ppf([0.001, 0.999])).tolist(), 200)
        axes.hist(values, bins=60, range=(grid[0].item(), grid[-1].item()), density=True, color="C0", alpha=0.4)
        axes.plot(grid, law.pdf(grid), color="C1")
        axes.set_title(name, fontsize=8)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig("reparameterizations.png")
    print(f"in 95 % of {size:,} draws of the right density the distance is below {1.358 / size**0.5:.4f}")
    print("reparameterizations.png")


if __name__ == "__main__":
    main()
