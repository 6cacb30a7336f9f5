"""A Markov network of seven variables, summed exactly by variable elimination, sampled, and learned back from data.

p(X1, ..., X7) = φ(X1, X2) φ(X1, X3) φ(X3, X4) φ(X3, X5, X6) φ(X5, X6, X7) / Z, every factor exp(-energy).

    python examples/markov_network.py
"""

import torch

import pyrolatent as pl

CLIQUES = [[1, 2], [1, 3], [3, 4], [3, 5, 6], [5, 6, 7]]

torch.manual_seed(0)
truth = pl.MarkovNetwork((7,), cliques=CLIQUES, spread=1.0)
print(truth)
print(f"\nlog Z = {truth.log_z().item():.6f}")
print("most probable x:", truth.mode().tolist())
print("p(X7 = 1) =", f"{truth.marginal(7)[1].item():.4f}")
for x1 in (0, 1):
    print(f"p(X7 = 1 | X1 = {x1}, X4 = 1) =", f"{truth.marginal(7, given={1: x1, 4: 1})[1].item():.4f}")

chains = truth.base(5000)
for _ in range(100):
    chains = truth.gibbs(chains)
print(f"p(X7 = 1) as its share of 5,000 chains after 100 sweeps of Gibbs sampling: {chains[:, 6].mean().item():.4f}")

# Maximum likelihood with exact gradients: energies are known up to constants, so the distributions are compared.
data = pl.load_data(truth.exact_sample(20_000).numpy().astype("uint8"))
learned = pl.MarkovNetwork((7,), cliques=CLIQUES)
pl.fit(
    learned, data, objective="exact_likelihood", optimizer={"Adam": {"lr": 0.02}}, epochs=20, batch_size=500,
    progress=False,
)  # fmt: skip
print("\nedge   p(Xi = 1, Xj = 1): truth  learned")
for i, j in ((1, 2), (1, 3), (3, 4), (5, 6), (6, 7)):
    both = [model.marginal(i, j)[1, 1].item() for model in (truth, learned)]
    print(f"{i}-{j}    {both[0]:24.4f} {both[1]:8.4f}")
own, best = (pl.evaluate(model, data).log_evidence for model in (learned, truth))
print(f"log p(x) of test data: learned {own:.3f}, truth {best:.3f} nats")
