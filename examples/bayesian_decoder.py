"""A Bayesian decoder beside decoders at a point: held-out log p(x) and calibration from few digits.

The decoder is linear, of five latent dimensions. Its weights are parameters of greatest likelihood, or have a prior and
an automatic guide: `AutoDelta` for the point of greatest posterior density, `AutoNormal` for a distribution over them.
Nothing else differs. The evidence of held-out digits is predictive, log E_q(w)[p(x | w)]. Where k-hat says that its
draws are too few for more than a tenth of the digits, it is a lower limit, which the figure draws hollow. Bars are over
digits; another seed of training moves points by some tenths of a nat.

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
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyrolatent as pl
from pyrolatent.data.splits import Split

PIXELS, Z, HIDDEN, DRAWS = 64, 5, 32, 100


class VAE(nn.Module):
    """A VAE of eight by eight pixels with a linear decoder.

    Args:
        weights: the automatic guide of the decoder's weights; None makes them parameters.
    """

    def __init__(self, weights=None):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](Z, PIXELS)
        if weights is not None:
            self.decoder.weight = PyroSample(dist.Normal(0.0, 1.0).expand([PIXELS, Z]).to_event(2))
            self.decoder.bias = PyroSample(dist.Normal(0.0, 2.0).expand([PIXELS]).to_event(1))
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * Z))
        self.weights = weights and weights(poutine.block(self.model, hide=["z"]))

    def model(self, x):
        """z ~ N(0, I), x ~ Bernoulli(decoder(z))."""
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
        logits = self.decoder(z)  # outside the plate, where its weights are drawn once for all datapoints
        with data:
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(-1, PIXELS))

    def guide(self, x):
        """The automatic guide of the weights, if they have one, and an encoder of z."""
        if self.weights is not None:
            self.weights(x)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.reshape(-1, PIXELS)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


DECODERS = {
    "greatest likelihood": None,
    "greatest posterior density": AutoDelta,
    "distribution over the weights": lambda model: AutoNormal(model, init_scale=0.1),
}
COLOURS = dict(zip(DECODERS, ("C3", "C1", "C0"), strict=True))
digits = pl.load_data("digits")
sizes = (30, 100, 300, 1000)
evidence, filled = {name: [] for name in DECODERS}, {}
upper = torch.ones(1, 8, 8, dtype=torch.bool)
upper[:, 4:] = False
for size in sizes:
    data = dataclasses.replace(digits, train=Split(*digits.train.batch(slice(0, size))))
    for name, weights in DECODERS.items():
        torch.manual_seed(0)
        pyro.clear_param_store()
        vae = VAE(weights)
        model = pl.from_pyro(vae.model, vae.guide)
        epochs = 60_000 // (size + 50)
        schedule = {"MultiStepLR": {"milestones": [epochs // 2, 3 * epochs // 4], "gamma": 0.3}}
        pl.fit(
            model, data, objective="elbo", epochs=epochs, batch_size=50, scheduler=schedule,
            optimizer={"Adam": {"lr": 0.01}}, progress=False,
        )  # fmt: skip
        found = pl.evaluate(model, data, particles=5000)
        evidence[name].append((found.log_evidence, found.log_evidence_se, found.khat_share))
        print(
            f"{size:5} digits, {name}: log p(x) {found.log_evidence:.2f} ± {found.log_evidence_se:.2f} over digits, "
            f"k-hat too large in {found.khat_share:.0%} of them"
        )
        if size == sizes[0]:
            x = data.test.batch(slice(None)).x
            drawn = pl.impute(model, x, upper.expand(x.shape), draws=DRAWS, particles=500)
            filled[name] = drawn.mean(0)[:, :, 4:].flatten(), x[:, :, 4:].flatten()

fig = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
left, right = fig.subplots(1, 2)
for name, values in evidence.items():
    mean, error, unreliable = zip(*values, strict=True)
    left.errorbar(sizes, mean, error, color=COLOURS[name], marker="o", markersize=4, capsize=2, label=name)
    for size, value, share in zip(sizes, mean, unreliable, strict=True):
        if share > 0.1:
            left.plot(size, value, "o", color="white", markersize=2.5, zorder=4)
left.set(xscale="log", xlabel="training digits", ylabel="log p(x) of held-out digits, nats")
left.set_xticks(sizes, sizes)
left.minorticks_off()
left.legend(frameon=False, fontsize=8)
for name, (share, true) in filled.items():
    bins = (share * 10).long().clamp(max=9)
    points = [(share[bins == b].mean(), true[bins == b].mean()) for b in range(10) if (bins == b).sum() > 20]
    right.plot(*zip(*points, strict=True), color=COLOURS[name], marker=".", label=name)
    # The share of 1 among the draws of a pixel has a variance of its own, p (1 - p) / draws, which the square counts.
    score = ((share - true) ** 2 - share * (1 - share) / (DRAWS - 1)).mean()
    print(f"lower half given the upper, {sizes[0]} digits, {name}: squared error of the probability {score:.4f}")
right.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
right.set(xlabel="probability that a missing pixel is 1", ylabel="share of them that are 1")
right.set_title(f"{sizes[0]} training digits, lower half filled in", fontsize=9)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
path = Path("bayesian_decoder.png")
fig.savefig(path)
print(f"figure: {path}")
