"""A Bayesian decoder beside a decoder at a point: held-out log p(x) and calibration from few digits.

The weights of the decoder have a prior, by Pyro's `PyroSample`, and an automatic guide: `AutoNormal` for a distribution
over them, `AutoDelta` for the point of highest posterior density. Nothing else differs. The evidence of held-out digits
is predictive: log E_q(w)[p(x | w)].

    python examples/bayesian_decoder.py
"""

import dataclasses
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyrolatent as pl
from pyrolatent.data.splits import Split

PIXELS, DRAWS = 64, 40


class VAE(nn.Module):
    """A VAE of eight by eight pixels whose decoder has weights with a prior.

    Args:
        weights: the automatic guide of the weights.
        z_dim: number of latent dimensions.
        hidden: width of both networks.
    """

    def __init__(self, weights, z_dim=5, hidden=64):
        super().__init__()
        self.z_dim = z_dim
        self.decoder = nn.Sequential(nn.Linear(z_dim, hidden), nn.Tanh(), nn.Linear(hidden, PIXELS))
        to_pyro_module_(self.decoder)
        for layer in (self.decoder[0], self.decoder[2]):
            size = layer.in_features**-0.5
            layer.weight = PyroSample(dist.Normal(0.0, 2 * size).expand(layer.weight.shape).to_event(2))
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(layer.bias.shape).to_event(1))
        self.encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Tanh(), nn.Linear(hidden, 2 * z_dim))
        self.weights = weights(poutine.block(self.model, hide=["z"]))

    def model(self, x):
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.z_dim), 1.0).to_event(1))
        logits = self.decoder(z)  # outside the plate, where its weights are drawn once for all datapoints
        with data:
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(-1, PIXELS))

    def guide(self, x):
        self.weights(x)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.reshape(-1, PIXELS)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


GUIDES = {
    "point of highest density": AutoDelta,
    "distribution over the weights": lambda model: AutoNormal(model, init_scale=0.02),
}
COLOURS = dict(zip(GUIDES, ("C1", "C0"), strict=True))
digits = pl.load_data("digits")
sizes = (50, 100, 200, 400, 800, len(digits.train))
evidence = {name: [] for name in GUIDES}
shares = {}
half = torch.ones(1, 8, 8, dtype=torch.bool)
half[:, 4:] = False
for size in sizes:
    data = dataclasses.replace(digits, train=Split(*digits.train.batch(slice(0, size))))
    for name, weights in GUIDES.items():
        torch.manual_seed(0)
        pyro.clear_param_store()
        vae = VAE(weights)
        model = pl.from_pyro(vae.model, vae.guide)
        epochs = 200_000 // (size + 400)
        pl.fit(model, data, objective="elbo", epochs=epochs, batch_size=50, patience=epochs // 4, progress=False)
        found = pl.evaluate(model, data, particles=1000)
        evidence[name].append((found.log_evidence, found.log_evidence_se))
        print(
            f"{size:5} digits, {name}: log p(x) {found.log_evidence:.2f} ± {found.log_evidence_se:.2f} over datapoints"
        )
        if size == 100:
            x = data.test.batch(slice(None)).x
            drawn = pl.impute(model, x, half.expand(x.shape), draws=DRAWS, particles=50)
            shares[name] = drawn.mean(0)[:, :, 4:].flatten(), x[:, :, 4:].flatten()

fig = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
left, right = fig.subplots(1, 2)
for name, values in evidence.items():
    mean, error = zip(*values, strict=True)
    left.errorbar(sizes, mean, error, color=COLOURS[name], marker=".", capsize=2, label=name)
left.set(xscale="log", xlabel="training digits", ylabel="log p(x) of held-out digits, nats")
left.set_xticks(sizes, sizes)
left.minorticks_off()
left.legend(frameon=False, fontsize=8)
edges = torch.linspace(0, 1, 11)
for name, (predicted, true) in shares.items():
    places = (torch.bucketize(predicted, edges[1:-1])).clamp(max=9)
    filled = [place for place in range(10) if (places == place).sum() > 20]
    at = [float(predicted[places == place].mean()) for place in filled]
    rate = [float(true[places == place].mean()) for place in filled]
    right.plot(at, rate, color=COLOURS[name], marker=".", label=name)
    # The mean of draws has a variance of its own, p (1 - p) / DRAWS, which a squared error counts.
    score = ((predicted - true) ** 2 - predicted * (1 - predicted) / (DRAWS - 1)).mean()
    print(f"lower half given the upper, 100 digits, {name}: squared error of the predicted probability {score:.4f}")
right.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
right.set(xlabel="predicted probability of a missing pixel", ylabel="share of pixels that are 1")
right.set_title("100 training digits, lower half filled in", fontsize=9)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
path = Path("bayesian_decoder.png")
fig.savefig(path)
print(f"figure: {path}")
