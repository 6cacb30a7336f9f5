"""Signal-to-noise of the encoder's gradient against the number of draws (Rainforth et al. 2018, 1802.04537).

A linear-Gaussian model near its optimum and an amortized posterior that is slightly off. For each objective and number
of draws K the gradient of the encoder's parameters is estimated many times; its signal-to-noise ratio is |mean| /
standard deviation, averaged over parameters. That of `iwae` falls with K: the tighter the bound, the less it teaches
the encoder. `dreg` estimates the same gradient without that loss. Writes signal_to_noise.png.

    python examples/signal_to_noise.py
"""

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

import pyrolatent as pl
from pyrolatent.inference.objectives.bounds import ELBO, IWAE, DReG

DRAWS = [1, 3, 10, 30, 100, 300, 1000]
REPEATS = 400

torch.manual_seed(0)
model = pl.LinearGaussian((20,), latent_dim=5, noise=1.0, posterior="normal")
with torch.no_grad():
    x = torch.randn(1, 5) @ model.likelihood.weight.T + torch.randn(1, 20)
data = pl.load_data((torch.randn(1000, 5) @ model.likelihood.weight.detach().T + torch.randn(1000, 20)).numpy())
pl.fit(model, data, objective={"stl": {"particles": 1}}, epochs=60, optimizer={"Adam": {"lr": 0.003}}, progress=False)
encoder = list(model.posterior.parameters())
with torch.no_grad():
    for parameter in encoder:
        parameter += 0.05 * torch.randn_like(parameter)


def signal_to_noise(objective: ELBO | IWAE) -> float:
    """Of the gradient at one datapoint, the mean over the encoder's parameters that x reaches."""
    drawn = []
    for _ in range(REPEATS):
        loss = objective.differentiable_loss(model.generate, model.infer, x)
        drawn.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder)]))
    gradients = torch.stack(drawn)
    reached = gradients.std(0) > 0
    return (gradients.mean(0).abs() / gradients.std(0))[reached].mean().item()


figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.add_subplot()
ratios = {}
for made, colour in zip((ELBO, IWAE, DReG), mpl.color_sequences["petroff10"], strict=False):
    ratios[made.__name__] = [signal_to_noise(made(particles=k)) for k in DRAWS]
    axes.loglog(DRAWS, ratios[made.__name__], "o-", color=colour, label=made.__name__)
floor = (2 / (torch.pi * REPEATS)) ** 0.5
axes.axhline(floor, color="0.6", linestyle=":", label=f"no signal, in {REPEATS} repetitions")
axes.set(xlabel="draws K", ylabel="signal-to-noise of the encoder's gradient")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
figure.savefig("signal_to_noise.png", dpi=150)

print("K      " + "".join(f"{k:>8}" for k in DRAWS))
for name, values in ratios.items():
    print(f"{name:<7}" + "".join(f"{value:8.3f}" for value in values))
print(f"a gradient without signal would show {floor:.3f}")
