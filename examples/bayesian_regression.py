"""Bayesian linear regression as a Pyro program, after 1, 10 and 100 rows, beside its closed form.

    w ~ N(0, I / 2),  y_n | x_n, w ~ N(w_0 + w_1 x_n, 0.2²)

The weights w are common to all rows: they lie outside the plate over datapoints. The figure has the posterior of w and
the predictive distribution of y, learnt in minibatches of ten and exact.

    python examples/bayesian_regression.py
"""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoMultivariateNormal

import pyrolatent as pl

PRECISION, NOISE, TRUE = 2.0, 0.2, torch.tensor([-0.3, 0.5])


def model(rows):
    """A row holds x_n and y_n."""
    w = pyro.sample("w", dist.Normal(rows.new_zeros(2), PRECISION**-0.5).to_event(1))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(w[0] + w[1] * rows[:, 0], NOISE), obs=rows[:, 1])


def exact(rows):
    """Mean and covariance of w given the rows."""
    features = torch.stack([torch.ones(len(rows)), rows[:, 0]], 1)
    covariance = torch.linalg.inv(PRECISION * torch.eye(2) + features.T @ features / NOISE**2)
    return covariance @ features.T @ rows[:, 1] / NOISE**2, covariance


def ellipse(mean, covariance):
    """The contour of two standard deviations."""
    angles = torch.linspace(0, 2 * torch.pi, 100)
    circle = torch.stack([angles.cos(), angles.sin()])
    return (mean[:, None] + 2 * torch.linalg.cholesky(covariance) @ circle).numpy()


torch.manual_seed(6)
x = torch.rand(140) * 2 - 1
rows = torch.stack([x, TRUE[0] + TRUE[1] * x + NOISE * torch.randn(140)], 1)
fig = Figure(figsize=(9, 6), dpi=130, layout="constrained")
panels = fig.subplots(2, 3)
grid = torch.linspace(-1, 1, 50)
for column, count in enumerate((1, 10, 100)):
    guide = AutoMultivariateNormal(model)
    pair = pl.from_pyro(model, guide)
    data = pl.load_data(rows[:count], validation=rows[100:120], test=rows[100:])
    epochs = 60 if count == 100 else 500
    schedule = {"MultiStepLR": {"milestones": [epochs // 2, 3 * epochs // 4], "gamma": 0.2}}
    pl.fit(
        pair, data, objective={"stl": {"particles": 1}}, batch_size=10, epochs=epochs, scheduler=schedule,
        optimizer={"Adam": {"lr": 0.03}}, progress=False, compile="never",
    )  # fmt: skip
    mean, covariance = exact(data.train.x)
    scale_tril = (guide.scale[:, None] * guide.scale_tril).detach()
    learnt = dist.MultivariateNormal(guide.loc.detach(), scale_tril=scale_tril)
    features = torch.stack([torch.ones(len(grid)), grid], 1)
    predicted = {
        "exact": (features @ mean, ((features @ covariance) * features).sum(1) + NOISE**2),
        "learnt": (features @ learnt.mean, ((features @ learnt.covariance_matrix) * features).sum(1) + NOISE**2),
    }
    found = pl.evaluate(pair, data, particles=2000)
    test = torch.stack([torch.ones(len(data.test.x)), data.test.x[:, 0]], 1)
    variance = ((test @ covariance) * test).sum(1) + NOISE**2
    truth = dist.Normal(test @ mean, variance.sqrt()).log_prob(data.test.x[:, 1]).mean()
    print(
        f"{count:3} rows: E[w] {mean.numpy().round(3)} exact, {learnt.mean.numpy().round(3)} learnt; "
        f"predictive log p(y) {truth:.3f} exact, {found.log_evidence:.3f} ± {found.log_evidence_mcse:.3f} learnt"
    )
    above, below = panels[0, column], panels[1, column]
    above.plot(*ellipse(mean, covariance), color="0.6", linewidth=5, label="exact")
    above.plot(*ellipse(learnt.mean, learnt.covariance_matrix), color="C0", label="learnt")
    above.plot(*TRUE, "k+", label="w that made the data")
    above.set(title=f"{count} row{'s' * (count > 1)}", xlabel="$w_0$", xlim=(-1.6, 1.2), ylim=(-1.6, 1.8))
    for name, style in (("exact", {"color": "0.6", "linewidth": 5}), ("learnt", {"color": "C0"})):
        centre, spread = predicted[name]
        for side in (-2, 0, 2):
            below.plot(grid, centre + side * spread.sqrt(), **style, label=name if not side else None)
    below.plot(*data.train.x.T, "k.", markersize=3)
    below.set(xlabel="x", ylim=(-2, 2))
panels[0, 0].set_ylabel("$w_1$, two standard deviations")
panels[1, 0].set_ylabel("y, mean and two standard deviations")
panels[0, 2].legend(frameon=False, fontsize=8)
path = Path("bayesian_regression.png")
fig.savefig(path)
print(f"figure: {path}")
