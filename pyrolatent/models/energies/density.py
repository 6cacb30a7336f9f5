"""Densities known up to their normaliser: what chains, contrastive training and estimates of log Z ask of a model."""

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
"""Where on the path from a base distribution (0) to the model (1): a number, or one for each chain, (chains, 1)."""


FAR = 10.0
"""Standard deviations of a base from which data are those of another model."""


def deviations(x: Tensor) -> Tensor:
    """Standard deviations of the entries of data (n, ...), (width,), in the units of each; none is 0.

    An entry that does not vary gets a thousandth of the root mean square of all, or 1 where none varies.
    """
    flat = x.reshape(len(x), -1)
    found = torch.where(flat.amax(0) > flat.amin(0), flat.std(0), 0.0)
    rest = 1e-3 * found.square().mean().sqrt()
    return torch.where(found > 0, found, torch.where(rest > 0, rest, 1.0))


def in_real_numbers(energy: Any) -> Tensor:
    """An energy as floats, also where a function of the user's gives an array, truth values or whole numbers."""
    energy = torch.as_tensor(energy)
    return energy if energy.is_floating_point() else energy.to(torch.get_default_dtype())


def warn_if_constant(x: Tensor) -> None:
    """Says which entries of data (n, ...) do not vary, whose density has no width that the data tell."""
    flat = x.reshape(len(x), -1)
    constant = (flat.amax(0) == flat.amin(0)).nonzero().flatten().tolist()
    if constant:
        named = ", ".join(map(str, constant[:10])) + (", ..." if len(constant) > 10 else "")
        warnings.warn(
            f"{len(constant)} of {flat.shape[1]} entries of x (from 0: {named}) are the same in all {len(x):,} "
            "training datapoints: their width is made up, a thousandth of the others', and log p(x) rests on it; "
            "leave them out",
            stacklevel=6,
        )


def warn_if_far(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    """Says that a base or units that were set by other data stay, where these are more than ten deviations away."""
    flat = x.reshape(len(x), -1)
    distance = ((flat.mean(0) - loc).abs() / scale).max().item()
    ratio = (flat.std(0) / scale).max().item()
    if max(distance, ratio) > FAR:
        warnings.warn(
            f"training goes on in the units of other data: the mean of x is up to {distance:.3g} of their standard "
            f"deviations away, and its spread up to {ratio:.3g}; build a new model, or scale x",
            stacklevel=6,
        )


class UnnormalisedDensity(Model):
    """p(x) = exp(-F(x)) / Z with a free energy F that can be computed and a normaliser Z that may not.

    The path that annealing and tempering follow is p_β(x) ∝ p_0(x)^(1 - β) exp(-β F(x)) or, where hidden units are
    summed out, the marginal of such a path of joint densities; p_0 can be drawn from and has a known normaliser.

    Chains run over *states*, which are data flattened to (chains, width) with whatever a model wants to remember of
    them: `state` makes them, `visible` gives the data back.

    Args:
        event_shape: shape of one datapoint x.
        levels: number of values of each element of x, (width,); None where they are real.

    Attributes:
        measure: what log p(x) is of, "mass" or "density".
        chains: persistent chains (chains, width), empty unless training left some.
        hotter: persistent chains at β < 1, (levels * chains, width), empty unless training tempered.
    """

    always_offers = frozenset({Capability.DENSITY, Capability.ENERGY})

    chains: Tensor
    hotter: Tensor
    levels: Tensor | None

    def __init__(self, event_shape: tuple[int, ...], levels: Tensor | None = None) -> None:
        super().__init__(event_shape)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("chains", torch.empty(0))
        self.register_buffer("hotter", torch.empty(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("chains", "hotter"):
            own = getattr(self, name)
            saved = state_dict.get(prefix + name, own)
            if saved.shape != own.shape:  # as many as there were in training
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def offers(self) -> frozenset[Capability]:
        """A density and an energy, log Z where it can be summed, and a gradient in x where x is real."""
        found = {Capability.LOG_Z: self.tractable, Capability.GRADIENT_IN_X: self.levels is None}
        return self.always_offers | {capability for capability, there in found.items() if there}

    @property
    def support(self) -> constraints.Constraint:
        """The set of each element of x, on the device of the model: real numbers, or whole ones from 0."""
        if self.levels is None:
            return constraints.real
        most = int(self.levels.max())
        if (self.levels == most).all():
            return constraints.boolean if most == 2 else constraints.integer_interval(0, most - 1)
        return constraints.integer_interval(0, (self.levels - 1).reshape(self.event_shape))

    @property
    def measure(self) -> str:
        """What log p(x) is of."""
        return "density" if self.levels is None else "mass"

    @property
    def base_scale(self) -> Tensor | float:
        """Standard deviations of the base over real x, (width,) or one for all: the units in which chains move."""
        return 1.0

    @property
    def has_conditionals(self) -> bool:
        """Whether there is a Gibbs sampler."""
        return self.levels is not None

    def free_energy(self, x: Any, y: Any = None) -> Tensor:
        """F(x) = -log p(x) - log Z, (batch,), nats; F(x, y) of models with label units if y is given.

        Args:
            x: data (batch, *event_shape), numbers of any type in a tensor, an array or nested lists.
            y: labels (batch,), whole numbers.

        Raises:
            InputError: they do not fit the model.
        """
        raise NotImplementedError

    def validated(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor | None]:
        """Data, and labels of models that have units for them, as the model's tensors.

        Raises:
            InputError: another shape, or values that x or y cannot have.
        """
        if get_proxy_mode() is not None:  # what is compiled is training, whose data have been looked at
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
        """The state of chains that stand at data (batch, *event_shape), and at labels (batch,) where it has any."""
        return self.restore(self.validated(x, y)[0].reshape(len(x), -1))

    def restore(self, flat: Tensor) -> Any:
        """The state that `flat` was made of."""
        return flat

    def visible(self, state: Any) -> Tensor:
        """The data that a state holds, (chains, *event_shape)."""
        return state.reshape(-1, *self.event_shape)

    def flat(self, state: Any) -> Tensor:
        """A state as what `chains` keeps, (chains, width)."""
        return state

    def log_density(self, state: Any, beta: Beta = 1.0) -> Tensor:
        """log of the unnormalised density of the path, (chains,): -F(x) at β = 1."""
        raise NotImplementedError

    def gibbs(self, state: Any, beta: Beta = 1.0) -> Any:
        """One sweep of Gibbs sampling: a reversible kernel that leaves p_β as it is."""
        raise InputError(
            f"{type(self).__name__} over real numbers has no conditionals to draw from; declare kernel: hmc or langevin"
        )

    def base(self, size: int) -> Any:
        """Independent states of p_0."""
        raise NotImplementedError

    def base_log_z(self) -> Tensor:
        """log of the normaliser of the path at β = 0, ()."""
        raise NotImplementedError

    @property
    def tractable(self) -> bool:
        """Whether log Z can be computed exactly."""
        return False

    def log_z(self) -> Tensor:
        """log Z, (), exact and differentiable.

        Raises:
            InputError: it cannot be computed; annealed importance sampling estimates it.
        """
        raise InputError(f"log Z of {type(self).__name__} has no exact form that is small enough; use ais")

    def exact_sample(self, size: int) -> Any:
        """Independent states of the model, where log Z is known.

        Raises:
            InputError: it is not.
        """
        raise InputError(f"{type(self).__name__} has no exact sampler; use chains")

    def log_prob(self, x: Any, y: Any = None) -> Tensor:
        """log p(x) = -F(x) - log Z, (batch,), where log Z is known."""
        return -self.free_energy(x, y) - self.log_z()

    def contrast(self, positive: Any, negative: Any) -> Tensor:
        """Adds the gradient of mean F(data) - mean F(samples) to the parameters'.

        With samples of the model its expectation is the gradient of the mean negative log-likelihood.

        Args:
            positive: states that hold data.
            negative: states of the chains, any number of them.

        Returns:
            The difference, ().
        """
        with torch.enable_grad():
            held = [self.restore(self.flat(state).detach()) for state in (positive, negative)]
            difference = self.log_density(held[1]).mean() - self.log_density(held[0]).mean()
            difference.backward()
        return difference.detach()

    def mean_visible(self, state: Any) -> Tensor:
        """E[x | h] at the hidden units of a state, (chains, *event_shape), of models that have some."""
        raise NotImplementedError

    def classify(self, x: Any) -> Tensor:
        """p(y | x), (batch, label_dim), of models of p(x, y)."""
        raise NotImplementedError

    def observe(self, state: Any) -> None:
        """Hook called with the data of each training batch; models that keep running means override it."""

    def monitor(self, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Numbers by which training is watched, from some training data; none that all models have."""
        return {}

    def penalise(self, state: Any, weight_decay: float, sparsity_target: float | None, sparsity_cost: float) -> None:
        """Adds the gradients of regularisers of hidden units to the parameters', of models that have some.

        Raises:
            InputError: the model has none.
        """
        self.require(Capability.HIDDEN_UNITS, "leave weight_decay and sparsity_target out")

    def adjust_gradients(self) -> None:
        """Called when the gradients are there and before the optimiser; models that change them override this."""

    def factor(self, name: str, x: Tensor) -> None:
        """The model as a term of a Pyro program: `pyro.factor(name, -F(x))`.

        Args:
            name: of the site.
            x: values (batch, *event_shape).
        """
        pyro.factor(name, -self.free_energy(x))


def in_double(model: UnnormalisedDensity) -> UnnormalisedDensity:
    """A copy in double precision, for sums over many states."""
    return copy.deepcopy(model).double()
