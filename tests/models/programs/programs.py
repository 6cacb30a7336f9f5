"""Small Pyro programs as users write them, unmodified, with what is known of them exactly."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

D, K = 4, 2


class Bernoullis(nn.Module):
    """A VAE as in Pyro's tutorial: methods of a module, networks named to Pyro, sites `latent` and `obs`."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(K, hidden), nn.Softplus(), nn.Linear(hidden, D))
        self.encoder = nn.Sequential(nn.Linear(D, hidden), nn.Softplus(), nn.Linear(hidden, 2 * K))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], K), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, D))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, D)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class Linear:
    """z ~ N(0, 1), x ~ N(w z, s²): the guide is the exact posterior N(w x / (w² + s²), s² / (w² + s²))."""

    w, s = 1.5, 0.5

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            loc = (self.w * z.unsqueeze(-1)).expand(*z.shape, x.shape[-1])
            pyro.sample("x", dist.Normal(loc, self.s).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        total = self.w**2 + self.s**2
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.w * x[:, 0] / total, self.s / math.sqrt(total)))

    def log_prob(self, x: Tensor) -> Tensor:
        return dist.Normal(0.0, math.sqrt(self.w**2 + self.s**2)).log_prob(x[:, 0])


def loc_model(x: Tensor) -> None:
    """Functions with `pyro.param`, one of them constrained: z ~ N(loc, scale), x ~ N(z, 1)."""
    loc = pyro.param("loc", lambda: torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, scale).expand([len(x)]))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def loc_guide(x: Tensor) -> None:
    slope = pyro.param("guide.slope", torch.tensor(0.1))
    width = pyro.param("guide.width", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x[:, 0], width))


class LocModel(PyroModule):  # type: ignore[misc]
    """The same model as a `PyroModule`."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        loc, scale = self.loc, self.scale
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, scale).expand([len(x)]))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


class Classes(nn.Module):
    """Model M2 as in Pyro's examples: the label is observed where it is given, and else drawn or summed out."""

    logits = torch.tensor([0.2, -0.3, 0.7])

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(3, D)
        self.encoder_y = nn.Linear(D, 3)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("classes", self)
        with pyro.plate("data"):
            logits = self.logits.to(xs).expand(len(xs), 3)
            ys = pyro.sample("y", dist.OneHotCategorical(logits=logits), obs=ys)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(ys)).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(xs)), infer={"enumerate": "parallel"})

    def log_prob(self, x: Tensor) -> Tensor:
        """log sum_y p(y) p(x | y)."""
        each = dist.Bernoulli(logits=self.decoder(torch.eye(3))).to_event(1).log_prob(x.unsqueeze(1))
        return (self.logits.log_softmax(0) + each).logsumexp(1)


class Regression(nn.Module):
    """x of given covariates y: z ~ N(0, 1), x ~ N(z + y w, 1), and masks that the program handles itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(3, 1)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("w", self.w)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + self.w(y), 1.0).to_event(1), obs=x)

    def guide(self, data: Tensor, covariates: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal((data - self.w(covariates))[:, 0] / 2, math.sqrt(0.5)))

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        return dist.Normal(self.w(y), math.sqrt(2.0)).to_event(1).log_prob(x)
