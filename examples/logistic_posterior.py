"""The amortized posterior of a logistic latent model beside its truth.

x | z ~ Bernoulli(sigmoid(w'z + b)), z ~ N(0, I / alpha) has no closed form; with one latent dimension a quadrature
gives the posterior's mean and standard deviation for every x.

    python examples/logistic_posterior.py
"""

import itertools

import torch

import pyrolatent as pl

torch.manual_seed(0)
model = pl.LogisticBernoulli((4,), latent_dim=1, precision=1.0, encoder={"mlp": {"hidden": [50]}})
model.likelihood.network.last.weight.data = torch.tensor([[2.0], [1.0], [-1.0], [3.0]])
model.likelihood.network.last.bias.data = torch.tensor([0.0, 0.5, 0.0, -1.0])
model.likelihood.requires_grad_(False)

data = pl.load_data(pl.sample(model, 4000))
pl.fit(model, data, objective={"elbo": {"particles": 10}}, optimizer={"Adam": {"lr": 0.003}}, epochs=60, progress=False)

x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
mean, deviation, evidence = model.quadrature(x)
with torch.no_grad():
    q = model.encode(x)["z"]
print("            mean              standard deviation")
print("   x        exact  amortized    exact  amortized   log p(x)")
for row in zip(x.int().tolist(), mean[:, 0], q.mean[:, 0], deviation[:, 0], q.stddev[:, 0], evidence, strict=True):
    print(f"{''.join(map(str, row[0]))}   {row[1]:10.3f} {row[2]:10.3f} {row[3]:8.3f} {row[4]:10.3f} {row[5]:10.3f}")
