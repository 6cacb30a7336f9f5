"""Latent-variable models whose posterior is known: linear-Gaussian in closed form, logistic by quadrature or NUTS."""

import math
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from annotated_types import Ge
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrolatent.declaration import Kind, PositiveFloat, PositiveInt, build, component
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.components.conditional import conditional, filled
from pyrolatent.models.components.family import CholeskyFloor
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability, MaskInput

NEWTON = 100
"""Steps to the mode of a posterior, and halvings of one, at most."""


@component("linear_gaussian", "model")
class LinearGaussian(LatentVariableModel):
    """z ~ N(0, I / alpha), x | z ~ N(W z + b, Sigma): probabilistic PCA, factor analysis, or any other Sigma.

    With S the inverse of Sigma, posterior and evidence are

        p(z | x) = N(V W' S (x - b), V),  V = (alpha I + W' S W)^-1
        log p(x) = log N(x; b, W W' / alpha + Sigma)

    This posterior is used as q(z | x), so the bound is the evidence. Closed-form fit for isotropic Sigma: Tipping and
    Bishop 1999; EM: Rubin and Thayer 1982.

    Args:
        event_shape: shape of one datapoint x; it is flattened.
        latent_dim: number of latent dimensions.
        noise: Sigma, learned: "isotropic" (one variance: probabilistic PCA), "diagonal" (one for each dimension: factor
            analysis) or "full"; or known: the standard deviation, one for each dimension, or the covariance matrix.
        precision: alpha.
        min_scale: lower bound of learned noise scales.
        posterior: family of an amortized posterior; None for the exact one.
        encoder: network of an amortized posterior.
        mask_input: whether the encoder receives the mask; "auto" if it is trained with one.
    """

    always_offers = LatentVariableModel.always_offers | {Capability.SOLUTION, Capability.EM}

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: PositiveInt,
        noise: Literal["isotropic", "diagonal", "full"]
        | PositiveFloat
        | list[PositiveFloat]
        | list[list[float]] = "isotropic",
        precision: PositiveFloat = 1.0,
        min_scale: Annotated[float, Ge(0)] = 1e-3,
        posterior: Annotated[Any, Kind("posterior")] = None,
        encoder: Annotated[Any, Kind("network")] = {"mlp": {"hidden": ()}},  # noqa: B006 (only read)
        mask_input: MaskInput = "auto",
    ) -> None:
        prior = build("prior", {"normal": {"precision": precision}}, latent_dim=latent_dim)
        likelihood = _LinearNormal(tuple(event_shape), latent_dim, noise, min_scale)
        self.exact = posterior is None
        q = _Exact() if self.exact else conditional("posterior", posterior, encoder, tuple(event_shape), (latent_dim,))
        super().__init__(event_shape, prior, likelihood, q)
        self.precision = precision
        self.mask_input = mask_input
        self.likelihood: _LinearNormal

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """z ~ p(z | x) given the observed entries, or its declared approximation."""
        if not self.exact:
            return super().infer(x, y, mask)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self._posterior(x, mask))
        return None

    def exact_posterior(self, x: Any, mask: Any = None) -> dist.MultivariateNormal:
        """p(z | x) given the observed entries, of batch shape (batch,).

        Args:
            x: data (batch, *event_shape).
            mask: True where x is observed.
        """
        x, _, mask = as_inputs(self, x, mask=mask)
        return self._posterior(x, mask)

    def _posterior(self, x: Tensor, mask: Tensor | None) -> dist.MultivariateNormal:
        weight, centred, _ = self._whitened(x, mask)
        weighted, precision = self._natural(weight, centred)
        factor = torch.linalg.cholesky(precision)
        loc = torch.cholesky_solve(weighted.unsqueeze(-1), factor).squeeze(-1)
        inverse = torch.linalg.solve_triangular(
            factor, torch.eye(factor.shape[-1]).to(factor).expand_as(factor), upper=False
        )
        scale_tril = torch.linalg.cholesky(inverse.mT @ inverse)
        return dist.MultivariateNormal(loc.to(x), scale_tril=scale_tril.to(x))

    def log_evidence(self, x: Any, mask: Any = None) -> Tensor:
        """The exact log p(x) of the observed entries, (batch,), nats.

        Computed by the matrix determinant and inversion lemmas, at a cost of latent_dim^3 per datapoint (and of the
        cube of its dimensions if Sigma is not diagonal and entries are missing), and in double precision, because for
        small noise its terms are far larger than their sum.

        Args:
            x: data (batch, *event_shape).
            mask: True where x is observed.
        """
        x, _, mask = as_inputs(self, x, mask=mask)
        weight, centred, terms = self._whitened(x, mask)
        weighted, precision = self._natural(weight, centred)
        factor = torch.linalg.cholesky(precision)
        solved = torch.linalg.solve_triangular(factor, weighted.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - factor.shape[-1] * math.log(self.precision)
        return (terms.sum(-1) + 0.5 * (solved.square().sum(-1) - log_det)).to(x)

    @torch.no_grad()
    def solve(self, x: Tensor) -> None:
        """Sets the maximum-likelihood solution for isotropic noise: W = U (L - s^2 I)^(1/2).

        U and L are the leading eigenvectors and eigenvalues of the covariance of x (datapoints, *event_shape), and s^2
        is the mean of the other eigenvalues.
        """
        if self.likelihood.noise != "isotropic":
            raise InputError("linear_gaussian has a closed form for noise: isotropic alone; declare objective: em")
        flat = x.flatten(1).double()
        latent_dim = self.likelihood.weight.shape[1]
        values, vectors = torch.linalg.eigh(torch.cov(flat.T, correction=0))
        rest = values[:-latent_dim]
        if not len(rest):
            raise InputError(f"latent_dim {latent_dim} leaves no dimension of x for the noise; declare a smaller one")
        variance = rest.mean().clamp(min=self.likelihood.min_scale**2)
        leading = (values[-latent_dim:] - variance).clamp(min=0).sqrt() * math.sqrt(self.precision)
        self.likelihood.set(vectors[:, -latent_dim:] * leading, flat.mean(0), variance.sqrt())

    @torch.no_grad()
    def em_step(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Takes one step of expectation-maximisation on all of x, which never lowers the evidence.

        Each row of (W, b) and each noise variance solves a least-squares problem over the datapoints where that
        dimension is observed, in double precision and with x centred, because moments of x far from 0 cancel. A
        dimension that is never observed keeps its noise, and its row of W goes to 0.

        Raises:
            InputError: Sigma is not diagonal, and entries are missing.
        """
        if mask is not None and not self.likelihood.independent:
            raise InputError("em takes missing entries where Sigma is diagonal; declare noise: diagonal")
        flat = x.flatten(1).double()
        seen = torch.ones_like(flat) if mask is None else mask.flatten(1).to(flat)
        counts = seen.sum(0).clamp(min=1)
        mean = torch.where(seen > 0, flat, 0.0).sum(0) / counts
        flat = torch.where(seen > 0, flat - mean, 0.0)
        q = self._posterior(x, mask)
        loc, covariance = q.loc.double(), q.covariance_matrix.double()
        moment = covariance + loc.unsqueeze(-1) * loc.unsqueeze(-2)
        extended = torch.cat([loc, torch.ones_like(loc[:, :1])], -1)
        second = torch.cat(
            [torch.cat([moment, loc.unsqueeze(-1)], -1), extended.unsqueeze(-2)], -2
        )  # E[(z, 1)(z, 1)'], (batch, d + 1, d + 1)
        gram = torch.einsum("ni,nab->iab", seen, second)
        cross = torch.einsum("ni,na->ia", flat, extended)
        # A dimension that is never observed has no equations.
        never = seen.sum(0) == 0
        gram = gram + never[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        rows = torch.linalg.solve(gram, cross.unsqueeze(-1)).squeeze(-1)
        if not self.likelihood.independent:
            residual = flat.T @ flat - rows @ cross.T
            self.likelihood.set(rows[:, :-1], rows[:, -1] + mean, (residual + residual.T) / (2 * len(flat)))
            return
        residual = (flat.square().sum(0) - (rows * cross).sum(-1)).clamp(min=0)
        if self.likelihood.noise == "diagonal":
            variance = torch.where(never, self.likelihood.parameters_flat()[2].double().square(), residual / counts)
        else:
            variance = residual.sum() / seen.sum()
        self.likelihood.set(rows[:, :-1], rows[:, -1] + mean, variance.sqrt())

    def _whitened(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """S^(1/2) W, (..., size, latent_dim), S^(1/2) (x - b), (batch, size), and the terms of log N(x; b, Sigma).

        S is the inverse of Sigma among the observed entries, and missing ones are 0. All are in double precision.
        """
        weight, loc, noise = (values.double() for values in self.likelihood.parameters_flat())
        seen = None if mask is None else mask.flatten(1)
        centred = filled(filled(x, mask, constraints.real).flatten(1).double() - loc, seen)
        weight = weight if seen is None else weight * seen.unsqueeze(-1)
        if self.likelihood.independent:
            weight, centred, diagonal = weight / noise.unsqueeze(-1), centred / noise, noise.expand_as(centred)
        else:
            if seen is not None:  # the factor of what is observed, with 1 on the diagonal of what is not
                both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
                noise = torch.linalg.cholesky(torch.where(both, noise @ noise.T, torch.eye(len(loc)).to(noise)))
            weight = torch.linalg.solve_triangular(noise, weight, upper=False)
            centred = torch.linalg.solve_triangular(noise, centred.unsqueeze(-1), upper=False).squeeze(-1)
            diagonal = noise.diagonal(dim1=-2, dim2=-1).expand_as(centred)
        terms = -0.5 * centred.square() - diagonal.log() - 0.5 * math.log(2 * math.pi)
        return weight, centred, terms if seen is None else torch.where(seen, terms, 0.0)

    def _natural(self, weight: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """W' S (x - b), (batch, latent_dim), and alpha I + W' S W, (batch, latent_dim, latent_dim)."""
        gram = (weight.mT @ weight).expand(len(centred), -1, -1)
        identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        return (weight.mT @ centred.unsqueeze(-1)).squeeze(-1), self.precision * identity + gram


class _LinearNormal(nn.Module):
    """p(x | z) = N(W z + b, Sigma) over events of any shape."""

    def __init__(self, event_shape: tuple[int, ...], latent_dim: int, noise: Any, min_scale: float) -> None:
        super().__init__()
        size = math.prod(event_shape)
        self.event_shape = torch.Size(event_shape)
        self.noise = noise
        self.min_scale = min_scale
        self.weight = nn.Parameter(torch.randn(size, latent_dim) / math.sqrt(latent_dim))
        self.bias = nn.Parameter(torch.zeros(size))
        self.unconstrained_scale: Tensor
        if isinstance(noise, str):
            shape = {"isotropic": (), "diagonal": (size,), "full": (size, size)}[noise]
            self.unconstrained_scale = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("known_scale", _known(noise, size), persistent=False)
        if not self.independent and len(event_shape) > 1:
            raise InputError(f"a Sigma that is not diagonal is of vectors, but x has shape {event_shape}; flatten it")

    @property
    def independent(self) -> bool:
        """Whether Sigma is diagonal."""
        return self.noise != "full" if isinstance(self.noise, str) else self.get_buffer("known_scale").dim() < 2

    def parameters_flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """W (size, latent_dim), b (size,) and the scales (size,) of Sigma, or its Cholesky factor (size, size)."""
        if not isinstance(self.noise, str):
            noise = self.get_buffer("known_scale").to(self.bias)
        elif self.independent:
            noise = self.min_scale + softplus(self.unconstrained_scale)
        else:
            noise = CholeskyFloor(self.min_scale)(self.unconstrained_scale)
        return self.weight, self.bias, noise.expand_as(self.bias) if self.independent else noise

    def set(self, weight: Tensor, bias: Tensor, noise: Tensor) -> None:
        """Sets W, b and, if it is learned, the noise scale or Sigma itself, bounded below by its floor."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if isinstance(self.noise, str) and self.independent:
            above = (noise.double() - self.min_scale).clamp(min=1e-12)
            self.unconstrained_scale.copy_(above + (-torch.expm1(-above)).log())
        elif isinstance(self.noise, str):
            values, vectors = torch.linalg.eigh(noise.double())
            floor = max(2 * self.min_scale, 1e-6) ** 2  # above that of the factor, which it would move
            factor = torch.linalg.cholesky((vectors * values.clamp(min=floor)) @ vectors.T)
            least = torch.diag((self.min_scale + 1e-6 - factor.diagonal()).clamp(min=0))
            self.unconstrained_scale.copy_(CholeskyFloor(self.min_scale).inv(factor + least))

    @torch.no_grad()
    def at_floor(self) -> bool:
        """Whether a learned noise scale has reached its floor."""
        noise = self.parameters_flat()[2]
        scales = noise if self.independent else noise.diagonal()
        return isinstance(self.noise, str) and bool((scales <= 1.01 * self.min_scale).any())

    def initialise(self, batch: Tensor, mask: Tensor | None = None) -> None:
        """Initialises b to the mean of the observed data."""
        seen = torch.ones_like(batch) if mask is None else mask.to(batch)
        mean = torch.where(seen > 0, batch, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        self.bias.data.copy_(mean.flatten())

    def forward(self, z: Tensor, y: Tensor | None = None) -> TorchDistributionMixin:
        weight, bias, noise = self.parameters_flat()
        flat = z @ weight.T + bias
        if self.independent:
            loc = flat.unflatten(-1, self.event_shape)
            return dist.Normal(loc, noise.reshape(self.event_shape)).to_event(len(self.event_shape))
        return dist.MultivariateNormal(flat, scale_tril=noise)

    def __str__(self) -> str:
        size, latent_dim = self.weight.shape
        learned = {
            "isotropic": "one learned scale", "diagonal": "a learned scale for each entry", "full": "learned covariance"
        }  # fmt: skip
        if isinstance(self.noise, str):
            noise = learned[self.noise]
        elif isinstance(self.noise, list):
            noise = "a known scale for each entry" if self.independent else "known covariance"
        else:
            noise = f"scale={self.noise:.4g}"
        return f"Normal(loc=W z + b, {noise}), W {size} x {latent_dim}"


def _known(noise: Any, size: int) -> Tensor:
    """A known scale (), scales (size,), or the Cholesky factor (size, size) of a known covariance.

    Raises:
        InputError: these are not scales of `size` dimensions, or no covariance.
    """
    try:
        found = torch.as_tensor(noise, dtype=torch.float64)
    except (TypeError, ValueError):
        found = torch.empty(0)
    if found.shape not in ((), (size,), (size, size)):
        raise InputError(
            f"noise is known as one number, {size} of them, or a matrix of {size} x {size}; it was {noise}"
        )
    if found.dim() == 2:
        factor, failed = torch.linalg.cholesky_ex(found)
        if failed or not torch.allclose(found, found.T):
            raise InputError(f"noise was {noise}, which is no covariance: it must be symmetric and positive definite")
        found = factor
    return found.to(torch.get_default_dtype())


class _Exact(nn.Module):
    """Placeholder for the exact posterior, which has no parameters of its own."""

    def __str__(self) -> str:
        return "Normal(exact mean, exact covariance)"


@component("logistic_bernoulli", "model")
class LogisticBernoulli(LatentVariableModel):
    """z ~ N(0, I / alpha), x | z ~ Bernoulli(sigmoid(W z + b)), with a numerically exact posterior to compare with.

    For one or two latent dimensions, posterior moments and evidence come from Gauss-Hermite quadrature; for more, draws
    from the posterior come from NUTS (Hoffman and Gelman 2014), without the evidence.

    Args:
        event_shape: shape of one datapoint x; it is flattened.
        latent_dim: number of latent dimensions.
        precision: alpha.
        posterior: the family of the amortized approximation q(z | x).
        encoder: the network of the approximation.
        mask_input: whether the encoder receives the mask; "auto" if it is trained with one.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: PositiveInt,
        precision: PositiveFloat = 1.0,
        posterior: Annotated[Any, Kind("posterior")] = "normal",
        encoder: Annotated[Any, Kind("network")] = "mlp",
        mask_input: MaskInput = "auto",
    ) -> None:
        event_shape, latent_shape = tuple(event_shape), (latent_dim,)
        super().__init__(
            event_shape,
            build("prior", {"normal": {"precision": precision}}, latent_dim=latent_dim),
            conditional("likelihood", "bernoulli", {"mlp": {"hidden": ()}}, latent_shape, event_shape),
            conditional("posterior", posterior, encoder, event_shape, latent_shape),
        )
        self.precision = precision
        self.mask_input = mask_input
        self.latent_dim = latent_dim

    @torch.no_grad()
    def quadrature(self, x: Any, nodes: int = 200) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior mean and standard deviation, (batch, latent_dim), and log p(x), (batch,), by quadrature.

        Gauss-Hermite nodes are centred at the mode of each posterior and scaled by its curvature there (Liu and Pierce
        1994), so that they cover it however narrow it is.

        Args:
            x: data (batch, *event_shape).
            nodes: number of nodes per latent dimension.

        Raises:
            InputError: there are more than two latent dimensions.
        """
        if self.latent_dim > 2:
            raise InputError(
                f"quadrature is for one or two latent dimensions, but there are {self.latent_dim}; use nuts"
            )
        x, *_ = as_inputs(self, x)
        flat = x.flatten(1).double()
        weight, bias = self._line()
        mode, scale = self._laplace(flat, weight, bias)
        points, weights = (torch.as_tensor(array).to(flat) for array in np.polynomial.hermite_e.hermegauss(nodes))
        grid = torch.cartesian_prod(*[points] * self.latent_dim).reshape(-1, self.latent_dim)
        log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log() + 0.5 * points.square()
        log_grid = torch.cartesian_prod(*[log_weights] * self.latent_dim).reshape(-1, self.latent_dim).sum(-1)
        found = []
        for row, centre, factor in zip(flat, mode, scale, strict=True):
            z = centre + grid @ factor.T  # (grid, latent_dim)
            log_joint = _log_bernoulli(row, z @ weight + bias) + self._log_prior(z) + log_grid
            log_joint = log_joint + factor.diagonal().log().sum()
            evidence = log_joint.logsumexp(0)
            posterior = (log_joint - evidence).exp()
            mean = posterior @ z
            found.append((mean, (posterior @ (z - mean).square()).sqrt(), evidence))
        mean, spread, evidence = (torch.stack(each).to(x) for each in zip(*found, strict=True))
        return mean, spread, evidence

    def _line(self) -> tuple[Tensor, Tensor]:
        """W', (latent_dim, size), and b, (size,), of the logits W z + b, in double precision."""
        at = torch.cat([torch.zeros(1, self.latent_dim), torch.eye(self.latent_dim)]).to(next(self.parameters()))
        bias, *rows = self.likelihood(at).base_dist.logits.flatten(1).double()
        return torch.stack(rows) - bias, bias

    def _log_prior(self, z: Tensor) -> Tensor:
        return dist.Normal(z.new_zeros(()), self.precision**-0.5).log_prob(z).sum(-1)

    def _laplace(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Modes of p(z | x), (batch, latent_dim), by Newton's method, and Cholesky factors of -H^-1 there.

        The log joint is concave, so the method converges if steps are halved until they increase it.
        """
        z = x.new_zeros(len(x), self.latent_dim)
        identity = torch.eye(self.latent_dim).to(z)

        def log_joint(z: Tensor) -> Tensor:
            return _log_bernoulli(x, z @ weight + bias) + self._log_prior(z)

        def curvature(p: Tensor) -> Tensor:
            """-H at the probabilities p of x."""
            return self.precision * identity + torch.einsum("ld,nd,md->nlm", weight, p * (1 - p), weight)

        for _ in range(NEWTON):
            p = torch.sigmoid(z @ weight + bias)
            step = torch.linalg.solve(curvature(p), (x - p) @ weight.T - self.precision * z)
            before = log_joint(z)
            for _ in range(NEWTON):
                worse = log_joint(z + step) < before - 1e-9 * before.abs()
                if not worse.any():
                    break
                step[worse] /= 2
            z = z + step
            if step.abs().max() < 1e-8:
                break
        return z, torch.linalg.cholesky(torch.linalg.inv(curvature(torch.sigmoid(z @ weight + bias))))

    def nuts(self, x: Any, draws: int = 500, warmup: int = 500) -> Tensor:
        """Draws from the exact posterior of all datapoints jointly, by Pyro's NUTS, (draws, batch, latent_dim).

        Args:
            x: data (batch, *event_shape).
            draws: number of draws to return.
            warmup: number of adaptation steps before them.
        """
        x, *_ = as_inputs(self, x)
        parameters = [p for p in self.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            chain = MCMC(NUTS(self.generate), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            chain.run(x)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
        return chain.get_samples()["z"]


def _log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x | logits), summed over the last dimension, nats."""
    return (x * logits - softplus(logits)).sum(-1)
