"""What is measured: each contender trains a workload's VAE on binary data and says the bound that it has reached.

A contender is a class of (workload, data, seed, device) with `train(steps)` and `bound()`, the latter of the first
`SCORED` datapoints, while training draws from the others.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.workloads import LR, MIN_SCALE, ByHand, Workload, network

SCORED, REPEATS = 1000, 10  # datapoints and draws of a final bound


class Eager:
    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.size, self.device = size, device
        self.scored, self.x = torch.as_tensor(data, dtype=torch.float32, device=device).tensor_split([SCORED])
        self.model = ByHand(size).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LR)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x = self.x[torch.randint(len(self.x), (self.size.batch_size,), device=self.device)]
            self.optimizer.zero_grad()
            self.model(x).backward()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def bound(self) -> float:
        return -sum(self.model(self.scored).item() for _ in range(REPEATS)) / REPEATS


class MatrixProducts(Eager):
    """The matrix products of a step alone, forward and backward: no training step can be faster."""

    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        rows = size.batch_size * size.particles
        self.device, self.products = device, []
        for widths, count in ((size.encoder, size.batch_size), (size.decoder, rows)):
            for place, (a, b) in enumerate(pairwise(widths)):
                x, w, g = (torch.randn(*shape, device=device) for shape in ((count, a), (b, a), (count, b)))
                self.products += [(x, w.T), (g.T, x)]
                if not (widths is size.encoder and place == 0):  # data needs no gradient
                    self.products.append((g, w))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            for a, b in self.products:
                torch.mm(a, b)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def bound(self) -> float:
        return float("nan")


def vae(size: Workload) -> Any:
    import pyrolatent as pl

    mlps = {"encoder": {"mlp": {"hidden": size.hidden}}, "decoder": {"mlp": {"hidden": size.hidden[::-1]}}}
    return pl.VAE((784,), latent_dim=size.latent_dim, **mlps)


class Pyrolatent:
    """What `pyrolatent.fit` does, with `compile="always"`."""

    precision = "float32"
    built = staticmethod(vae)

    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        import pyro

        import pyrolatent as pl
        from pyrolatent.declaration import build
        from pyrolatent.inference.training.fitted import Fit
        from pyrolatent.inference.training.loop import Trainer

        pyro.enable_validation(False)
        torch.manual_seed(seed)
        loaded = pl.load_data(data[SCORED:], validation=0.001, test=0.001).to(device)
        settings = {
            "epochs": 1, "batch_size": size.batch_size, "optimizer": {"Adam": {"lr": LR}}, "seed": seed,
            "compile": "always", "precision": self.precision,
        }  # fmt: skip
        objective = "elbo" if size.particles == 1 else {"iwae": {"particles": size.particles}}
        self.model, self.size, self.device = self.built(size).to(device), size, device
        self.scored = torch.as_tensor(data[:SCORED], dtype=torch.float32, device=device)
        self.model.meet(self.scored[:3])
        self.trainer = Trainer(Fit(self.model, loaded, settings), loaded, build("objective", objective))
        self.waiting: list[Any] = []
        self.trainer.gradient.compile(self.trainer.indices()[0], self.trainer.factor)
        if self.trainer.gradient.compiled is None:
            raise RuntimeError("the step could not be compiled")

    def train(self, steps: int) -> None:
        for _ in range(steps):
            if not self.waiting:
                self.waiting = [index for index in self.trainer.indices() if len(index) == self.size.batch_size]
            self.trainer.step(self.waiting.pop())
        if self.device == "cuda":
            torch.cuda.synchronize()

    def bound(self) -> float:
        from pyrolatent.inference.evidence.importance import score

        draws = [score(self.model, self.scored, particles=self.size.particles).log_evidence for _ in range(REPEATS)]
        return torch.stack(draws).mean().item()


class PyrolatentBF16(Pyrolatent):
    precision = "bf16"


class Pyro(Eager):
    """`pyro.infer.SVI` on the model's pair."""

    built = staticmethod(vae)

    def programs(self) -> tuple[Any, Any]:
        return self.model.model, self.model.guide

    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        import pyro

        pyro.enable_validation(False)
        pyro.clear_param_store()  # of the copy before
        pyro.set_rng_seed(seed)
        self.size, self.device = size, device
        self.scored, self.x = torch.as_tensor(data, dtype=torch.float32, device=device).tensor_split([SCORED])
        self.model = self.built(size).to(device)
        one = size.particles == 1
        infer: Any = pyro.infer
        loss = infer.Trace_ELBO() if one else infer.RenyiELBO(0.0, size.particles, 1, vectorize_particles=True)
        self.svi = infer.SVI(*self.programs(), pyro.optim.Adam({"lr": LR}), loss)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.svi.step(self.x[torch.randint(len(self.x), (self.size.batch_size,), device=self.device)])

    bound = Pyrolatent.bound


class PyroVAE(nn.Module):
    """The same VAE as a program of Pyro's tutorial writes it."""

    def __init__(self, size: Workload) -> None:
        super().__init__()
        self.encoder, self.decoder = network(size.encoder), network(size.decoder)
        self.latent_dim = size.latent_dim

    def model(self, x: torch.Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, MIN_SCALE + nn.functional.softplus(scale)).to_event(1))


def pair(size: Workload) -> Any:
    import pyrolatent as pl

    program = PyroVAE(size)
    return pl.from_pyro(program.model, program.guide)


class Pair(Pyrolatent):
    """What `pyrolatent.fit` does with a Pyro program, by `from_pyro`, with `compile="always"`."""

    built = staticmethod(pair)


class PairBySVI(Pyro):
    """The Pyro program's own loop of `pyro.infer.SVI`."""

    built = staticmethod(pair)

    def programs(self) -> tuple[Any, Any]:
        return self.model._programs


class NumPyro:
    """NumPyro's SVI, many steps in one scan."""

    STEPS = 50  # of one scan

    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

        random = np.random.default_rng(seed)

        def uniform(fan_in: int, *shape: int) -> Any:
            return jnp.asarray(random.uniform(-(fan_in**-0.5), fan_in**-0.5, shape), jnp.float32)

        def start(widths: list[int]) -> list[Any]:
            return [(uniform(a, a, b), uniform(a, b)) for a, b in pairwise(widths)]

        def apply(layers: Any, value: Any) -> Any:
            for place, (w, b) in enumerate(layers):
                value = value @ w + b
                value = jax.nn.relu(value) if place < len(layers) - 1 else value
            return value

        def model(x: Any) -> None:
            layers = numpyro.param("decoder", start(size.decoder))
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(size.latent_dim), 1.0).to_event(1))
                numpyro.sample("x", dist.Bernoulli(logits=apply(layers, z)).to_event(1), obs=x)

        def guide(x: Any) -> None:
            layers = numpyro.param("encoder", start(size.encoder))
            with numpyro.plate("data", len(x)):
                loc, scale = jnp.split(apply(layers, x), 2, -1)
                numpyro.sample("z", dist.Normal(loc, MIN_SCALE + jax.nn.softplus(scale)).to_event(1))

        loss = Trace_ELBO() if size.particles == 1 else RenyiELBO(0.0, size.particles)
        self.svi = SVI(model, guide, numpyro.optim.Adam(LR), loss)
        self.scored, self.x = jnp.split(jnp.asarray(data, jnp.float32), [SCORED])
        self.state = self.svi.init(jax.random.PRNGKey(seed), self.x[: size.batch_size])
        self.key, self.jax, self.size = jax.random.PRNGKey(seed + 1), jax, size

        def step(state: Any, index: Any) -> Any:
            return self.svi.update(state, self.x[index])

        self.scan = jax.jit(lambda state, indices: jax.lax.scan(step, state, indices))
        self.evaluate = jax.jit(lambda state, x: self.svi.evaluate(state, x))

    def train(self, steps: int) -> None:
        for _ in range(steps // self.STEPS):
            self.key, key = self.jax.random.split(self.key)
            shape = (self.STEPS, self.size.batch_size)
            indices = self.jax.random.randint(key, shape, 0, len(self.x))
            self.state, losses = self.scan(self.state, indices)
            losses.block_until_ready()

    def bound(self) -> float:
        batch = self.size.batch_size
        scored = [self.scored[start : start + batch] for start in range(0, max(1, SCORED - batch + 1), batch)]
        total = 0.0
        for x in scored * REPEATS:
            self.key, key = self.jax.random.split(self.key)
            total -= float(self.evaluate(self.state._replace(rng_key=key), x)) / len(x)
        return total / len(scored) / REPEATS


class Pythae:
    """Pythae's trainer on its VAE and IWAE, an epoch at a time, each of fresh draws from the data."""

    STEPS = 50  # of one epoch

    def __init__(self, size: Workload, data: np.ndarray, seed: int, device: str) -> None:
        import tempfile

        from pythae.data.datasets import BaseDataset
        from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        class Encoder(BaseEncoder):
            def __init__(self) -> None:
                super().__init__()
                self.network = network(size.encoder)

            def forward(self, x: Any) -> Any:
                loc, log_variance = self.network(x).chunk(2, -1)
                return ModelOutput(embedding=loc, log_covariance=log_variance)

        class Decoder(BaseDecoder):
            def __init__(self) -> None:
                super().__init__()
                self.network = nn.Sequential(network(size.decoder), nn.Sigmoid())

            def forward(self, z: Any) -> Any:
                return ModelOutput(reconstruction=self.network(z))

        torch.manual_seed(seed)
        shape = {"input_dim": (784,), "latent_dim": size.latent_dim, "reconstruction_loss": "bce"}
        if size.particles == 1:
            self.model = VAE(VAEConfig(**shape), Encoder(), Decoder())
        else:
            self.model = IWAE(IWAEConfig(number_samples=size.particles, **shape), Encoder(), Decoder())
        self.scored, self.pool = torch.as_tensor(data, dtype=torch.float32).tensor_split([SCORED])
        self.drawn, self.epoch = self.STEPS * size.batch_size, 0
        config = BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size.batch_size, learning_rate=LR, num_epochs=1,
            no_cuda=device == "cpu",
        )  # fmt: skip
        self.dataset = BaseDataset(self.pool[torch.zeros(self.drawn).long()], torch.zeros(self.drawn))
        self.trainer = BaseTrainer(self.model, self.dataset, training_config=config)
        self.trainer.prepare_training()
        self.scored = self.scored.to(device)

    def train(self, steps: int) -> None:
        for _ in range(steps // self.STEPS):
            self.dataset.data = self.pool[torch.randint(len(self.pool), (self.drawn,))]
            self.epoch += 1
            self.trainer.train_step(self.epoch)

    @torch.no_grad()
    def bound(self) -> float:
        from pythae.data.datasets import DatasetOutput

        batch = DatasetOutput(data=self.scored)
        return -sum(self.model(batch).loss.item() for _ in range(REPEATS)) / REPEATS


CONTENDERS: dict[str, Any] = {
    "eager": Eager,
    "matmul": MatrixProducts,
    "pyrolatent": Pyrolatent,
    "pyrolatent-bf16": PyrolatentBF16,
    "pyro": Pyro,
    "pair": Pair,
    "pair-svi": PairBySVI,
    "numpyro": NumPyro,
    "pythae": Pythae,
}
