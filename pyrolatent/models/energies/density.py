"""Densities known up to their normaliser: the interface for chains, contrastive training and estimates of log Z."""

import copy
import warnings
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_inputs, as_numbers
from pyrolatent.models.model import Capability, Model

Beta = float | Tensor
"""Inverse temperature on the path from a base distribution (0) to the model (1): a number, or one per chain,
(chains, 1)."""


def deviations(x: Tensor) -> Tensor:
    """Positive standard deviations of the entries of data (n, ...), (width,), in the units of each.

    A constant entry gets a thousandth of the root mean square of all, or 1 if all are constant.
    """
    flat = x.reshape(len(x), -1)
    found = torch.where(flat.amax(0) > flat.amin(0), flat.std(0, correction=min(1, len(flat) - 1)), 0.0)
    rest = 1e-3 * found.square().mean().sqrt()
    return torch.where(found > 0, found, torch.where(rest > 0, rest, 1.0))


def in_real_numbers(energy: Any) -> Tensor:
    """An energy as floats, also if a user's function returns an array, booleans or integers."""
    energy = torch.as_tensor(energy)
    return energy if energy.is_floating_point() else energy.to(torch.get_default_dtype())


def warn_if_constant(x: Tensor) -> None:
    """Warns of constant entries of data (n, ...), for which the data do not determine a width of the density."""
    flat = x.reshape(len(x), -1)
    constant = (flat.amax(0) == flat.amin(0)).nonzero().flatten().tolist()
    if constant:
        named = ", ".join(map(str, constant[:10])) + (", ..." if len(constant) > 10 else "")
        warnings.warn(
            f"{len(constant)} of {flat.shape[1]} entries of x (from 0: {named}) are the same in all {len(x):,} "
            "training datapoints: their width is set to a thousandth of the others', and log p(x) depends on it; "
            "leave them out",
            stacklevel=6,
        )


class UnnormalisedDensity(Model):
    """p(x) = exp(-F(x)) / Z with a tractable free energy F and a normaliser Z that may be intractable.

    Annealing and tempering follow the path p_β(x) ∝ p_0(x)^(1 - β) exp(-β F(x)) or, if hidden units are summed out, the
    marginal of such a path of joint densities. The base p_0 can be sampled and has a known normaliser.

    Chains run over *states*: data flattened to (chains, width), with whatever a model caches about them. `state` makes
    them from data, and `visible` returns the data.

    Args:
        event_shape: shape of one datapoint x.
        levels: number of values of each element of x, (width,); None if they are real.

    Attributes:
        measure: the measure of p(x), "mass" or "density".
        chains: persistent chains (chains, width); empty unless training has kept some.
        tempered_chains: persistent chains at β < 1, (levels * chains, width); empty unless training was tempered.
    """

    always_offers = frozenset({Capability.DENSITY, Capability.ENERGY})

    chains: Tensor
    tempered_chains: Tensor
    levels: Tensor | None

    def __init__(self, event_shape: tuple[int, ...], levels: Tensor | None = None) -> None:
        super().__init__(event_shape)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("chains", torch.empty(0))
        self.register_buffer("tempered_chains", torch.empty(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "hotter" in state_dict:  # the name in older runs
            state_dict[prefix + "tempered_chains"] = state_dict.pop(prefix + "hotter")
        for name in ("chains", "tempered_chains"):
            own = getattr(self, name)
            saved = state_dict.get(prefix + name, own)
            if saved.shape != own.shape:  # the number of chains in training
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def offers(self) -> frozenset[Capability]:
        """A density and an energy; log Z if it can be summed; a gradient in x if x is real."""
        found = {Capability.LOG_Z: self.tractable, Capability.GRADIENT_IN_X: self.levels is None}
        return self.always_offers | {capability for capability, there in found.items() if there}

    @property
    def support(self) -> constraints.Constraint:
        """The support of each element of x, on the device of the model: real numbers, or integers from 0."""
        if self.levels is None:
            return constraints.real
        most = int(self.levels.max())
        if (self.levels == most).all():
            return constraints.boolean if most == 2 else constraints.integer_interval(0, most - 1)
        return constraints.integer_interval(0, (self.levels - 1).reshape(self.event_shape))

    @property
    def measure(self) -> str:
        """The measure of p(x)."""
        return "density" if self.levels is None else "mass"

    @property
    def base_scale(self) -> Tensor | float:
        """Standard deviations of the base over real x, (width,) or one for all, which are the units of moves."""
        return 1.0

    @property
    def has_conditionals(self) -> bool:
        """Whether there is a Gibbs sampler."""
        return self.levels is not None

    def free_energy(self, x: Any, y: Any = None) -> Tensor:
        """F(x) = -log p(x) - log Z, (batch,), nats; F(x, y) of models with label units if y is given.

        Args:
            x: data (batch, *event_shape), numbers of any type in a tensor, an array or nested lists.
            y: labels (batch,), integers.

        Raises:
            InputError: x or y does not fit the model.
        """
        raise NotImplementedError

    def validated(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor | None]:
        """Validates data, and labels of models with label units, and converts them to the model's tensors.

        Raises:
            InputError: x or y has another shape, or values outside the support.
        """
        if get_proxy_mode() is not None:  # only training is compiled, and its data have been validated
            return as_numbers(self, x, "x"), y
        missing = int((~torch.isfinite(as_numbers(self, x, "x"))).sum())
        if missing:
            raise InputError(f"{missing} values of x are NaN or infinite; energies are of complete data")
        x, y, _ = as_inputs(self, x, y)
        if self.levels is not None:
            flat = x.reshape(len(x), -1)
            wrong = int(((flat != flat.round()) | (flat < 0) | (flat >= self.levels)).any(1).sum())
            if wrong:
                most = {int(level) - 1 for level in self.levels}
                values = "0 and 1" if most == {1} else f"the whole numbers from 0 to {'/'.join(map(str, sorted(most)))}"
                raise InputError(
                    f"{wrong} of {len(x)} datapoints hold values that their variables do not have, which are {values}; "
                    "binarize grey values, or declare a density of real numbers"
                )
        return x, y

    def state(self, x: Any, y: Any = None) -> Any:
        """The state of chains at data (batch, *event_shape), and at labels (batch,) of models with label units."""
        return self.restore(self.validated(x, y)[0].reshape(len(x), -1))

    def restore(self, flat: Tensor) -> Any:
        """The state from which `flat` was made."""
        return flat

    def visible(self, state: Any) -> Tensor:
        """The data of a state, (chains, *event_shape)."""
        return state.reshape(-1, *self.event_shape)

    def flat(self, state: Any) -> Tensor:
        """A state flattened as `chains` stores it, (chains, width)."""
        return state

    def log_density(self, state: Any, beta: Beta = 1.0) -> Tensor:
        """Log of the unnormalised density of the path, (chains,): -F(x) at β = 1."""
        raise NotImplementedError

    def gibbs(self, state: Any, beta: Beta = 1.0) -> Any:
        """One sweep of Gibbs sampling, a reversible kernel that leaves p_β invariant."""
        raise InputError(
            f"{type(self).__name__} over real numbers has no conditionals to draw from; declare kernel: hmc or langevin"
        )

    def base(self, size: int) -> Any:
        """Independent states of p_0."""
        raise NotImplementedError

    def base_log_z(self) -> Tensor:
        """Log of the normaliser of the path at β = 0, ()."""
        raise NotImplementedError

    @property
    def tractable(self) -> bool:
        """Whether log Z can be computed exactly."""
        return False

    def log_z(self) -> Tensor:
        """The exact log Z, (), differentiable.

        Raises:
            InputError: log Z is intractable; annealed importance sampling estimates it.
        """
        raise InputError(f"log Z of {type(self).__name__} has no exact form that is small enough; use ais")

    def exact_sample(self, size: int) -> Any:
        """Independent states of the model, if log Z is tractable.

        Raises:
            InputError: log Z is intractable.
        """
        raise InputError(f"{type(self).__name__} has no exact sampler; use chains")

    def log_prob(self, x: Any, y: Any = None) -> Tensor:
        """log p(x) = -F(x) - log Z, (batch,), if log Z is tractable."""
        return -self.free_energy(x, y) - self.log_z()

    def contrast(self, positive: Any, negative: Any) -> Tensor:
        """Adds the gradient of mean F(data) - mean F(samples) to the parameters'.

        Its expectation over samples from the model is the gradient of the mean negative log-likelihood.

        Args:
            positive: states of the data.
            negative: states of any number of chains.

        Returns:
            The difference, ().
        """
        with torch.enable_grad():
            held = [self.restore(self.flat(state).detach()) for state in (positive, negative)]
            difference = self.log_density(held[1]).mean() - self.log_density(held[0]).mean()
            difference.backward()
        return difference.detach()

    def mean_visible(self, state: Any) -> Tensor:
        """E[x | h] at the hidden units of a state, (chains, *event_shape), for models with hidden units."""
        raise NotImplementedError

    def classify(self, x: Any) -> Tensor:
        """p(y | x), (batch, label_dim), for models of p(x, y)."""
        raise NotImplementedError

    def observe(self, state: Any) -> None:
        """Hook called with the data of each training batch; models that keep running means override it."""

    def monitor(self, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Diagnostics of training, from some training data; none by default."""
        return {}

    def penalise(self, state: Any, weight_decay: float, sparsity_target: float | None, sparsity_cost: float) -> None:
        """Adds the gradients of regularisers of hidden units to the parameters'.

        Raises:
            InputError: the model has no hidden units.
        """
        self.require(Capability.HIDDEN_UNITS, "leave weight_decay and sparsity_target out")

    def adjust_gradients(self) -> None:
        """Hook called between computing gradients and the optimiser's step; models that change them override it."""

    def factor(self, name: str, x: Tensor) -> None:
        """The model as a term of a Pyro program: `pyro.factor(name, -F(x))`.

        Args:
            name: name of the site.
            x: values (batch, *event_shape).
        """
        pyro.factor(name, -self.free_energy(x))


def in_double(model: UnnormalisedDensity) -> UnnormalisedDensity:
    """A copy in double precision, for sums over many states."""
    return copy.deepcopy(model).double()
