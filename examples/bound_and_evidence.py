"""log p(x) = bound + KL(q to the posterior), as numbers on a model whose posterior is exact, and the KL's convexity.

The model is linear-Gaussian with a full noise covariance: z ~ N(0, I), x | z ~ N(W z, Sigma). For three q the bound is
estimated by draws from q, and the KL is computed in closed form; they add up to log p(x). Then the KL of mixtures of
two normals to a third is drawn against their weight: it lies below the line between its ends.

    python examples/bound_and_evidence.py
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pyrolatent as pl


def main() -> None:
    """Prints the table and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200_000)
    draws = parser.parse_args().draws
    torch.manual_seed(0)
    sigma = [[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]]
    model = pl.LinearGaussian((3,), latent_dim=2, noise=sigma).double().requires_grad_(False)
    x = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    exact, evidence = model.exact_posterior(x), model.log_evidence(x).item()
    weight, _, factor = model.likelihood.parameters_flat()
    inverse = torch.cholesky_inverse(factor)
    covariance = torch.linalg.inv(torch.eye(2) + weight.T @ inverse @ weight)  # (alpha I + W' S W)^-1, alpha = 1
    mean = covariance @ weight.T @ inverse @ x[0]  # (alpha I + W' S W)^-1 W' S x
    error = max((exact.mean[0] - mean).abs().max(), (exact.covariance_matrix[0] - covariance).abs().max())
    print(f"the posterior is that of the formula within {error:.0e}; log p(x) = {evidence:.6f}\n")

    narrow = exact.covariance_matrix[0].diagonal()
    posteriors = {
        "the exact posterior": exact,
        "independent, with its variances": MultivariateNormal(exact.mean, torch.diag(narrow)[None]),
        "the prior": MultivariateNormal(torch.zeros(1, 2).double(), torch.eye(2)[None].double()),
    }
    print(f"{'q':<34}{'bound':>12}{'KL':>12}{'sum':>12}")
    for name, q in posteriors.items():
        z = q.sample((draws,))
        terms = model.likelihood(z).log_prob(x) + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
        bound, kl = terms.mean().item(), kl_divergence(q, exact).item()
        print(f"{name:<34}{bound:>12.4f}{kl:>12.4f}{bound + kl:>12.4f} ± {terms.std().item() / draws**0.5:.4f}")

    grid, shares = torch.linspace(-12, 12, 4801).double(), torch.linspace(0, 1, 51).double()
    step = grid[1] - grid[0]
    one, other, third = (Normal(*pair).log_prob(grid).exp() for pair in ((-2.0, 0.6), (1.5, 1.2), (0.0, 1.5)))
    mixtures = shares[:, None] * other + (1 - shares[:, None]) * one
    kl = (mixtures * (mixtures.clamp(min=1e-300) / third).log()).sum(1) * step
    line = (1 - shares) * kl[0] + shares * kl[-1]
    print(f"\nKL of mixtures below the line between its ends at every weight: {bool((kl <= line + 1e-12).all())}; "
          f"greatest gap {(line - kl).max():.3f} nats; smallest KL {kl.min():.3f}")  # fmt: skip

    figure = Figure(figsize=(7, 2.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for density, label in ((one, "$q_0$"), (other, "$q_1$"), (third, "p")):
        left.plot(grid, density, label=label)
    left.set(xlabel="z", ylabel="density", xlim=(-5, 6))
    right.plot(shares, kl, label="KL of the mixture to p")
    right.plot(shares, line, color="0.6", linestyle="--", label="line between its ends")
    right.set(xlabel="weight of $q_1$ in the mixture", ylabel="nats")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("bound_and_evidence.png")
    print("bound_and_evidence.png")


if __name__ == "__main__":
    main()
