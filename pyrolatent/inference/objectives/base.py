"""The base class of objectives, and the wrapper of Pyro's objectives for the training loop."""

from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor

from pyrolatent.declaration import Options, declared_name
from pyrolatent.errors import InputError
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.model import Capability

PAIR = frozenset({Capability.DENSITY, Capability.POSTERIOR})
"""Capabilities that every bound needs: those of a generative function and a guide."""


class Objective(Options):
    """What training maximises, by gradients of minibatches or by updates on all data."""

    needs: ClassVar[frozenset[Capability]] = frozenset()
    """The capabilities that a model must offer."""

    settings: ClassVar[tuple[str, ...] | None] = None
    """Settings of `fit` that apply; None means all except `unused`."""

    unused: ClassVar[tuple[str, ...]] = ("kl_warmup",)
    """Settings of `fit` that do not apply."""

    by_gradient: ClassVar[bool] = True
    """Whether training calls `accumulate` on minibatches, or else `update` on all data."""

    epochs: ClassVar[int | None] = None
    """Number of epochs after which training is complete; None means those declared."""

    compiles: ClassVar[bool] = True
    """Whether `accumulate` can be compiled: it keeps no state between steps except in the model."""

    takes_masks: ClassVar[bool] = True
    """Whether x may have missing entries."""

    adds_training_terms: ClassVar[bool] = True
    """Whether it includes a model's `training_term`."""

    distributes: ClassVar[bool] = True
    """Whether several processes can share a minibatch."""

    @property
    def sums_out(self) -> bool:
        """Whether it sums out states that the generative function alone has."""
        return False

    @property
    def num_particles(self) -> int:
        """Number of draws per datapoint."""
        return 1

    @property
    def name(self) -> str:
        """The name by which it is declared, or that of its class."""
        return declared_name(self)

    def unfit(self, model: Any, inputs: Inputs) -> str | None:
        """Why it cannot train a model, found by running it on inputs (x, y, mask); None if it can."""
        return None

    def prepare(self, model: Any) -> None:
        """Initialises the state that the model keeps between steps, such as persistent chains, if it is missing."""

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean negative target of a minibatch to the parameters'.

        Args:
            model: the model.
            inputs: x, y, mask.
            warmup: factor of beta.

        Returns:
            The reported score, summed over the minibatch; higher is better.
        """
        raise NotImplementedError

    def update(self, model: Any, inputs: Inputs) -> None:
        """Takes one step on all training data, for an objective that is not optimised by gradients."""
        raise NotImplementedError

    def extra_losses(self) -> dict[str, Tensor]:
        """Further losses of the last minibatch to report with `train_loss`, each summed over it."""
        return {}


class PyroObjective(Objective):
    """Wrapper of one of Pyro's objectives for the training loop.

    Args:
        elbo: an instance such as `pyro.infer.Trace_ELBO()`.
    """

    adds_training_terms = False

    elbo: Any

    def __post_init__(self) -> None:
        self.needs = needs_of(type(self.elbo))  # type: ignore[misc]

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.elbo).__name__

    @property
    def sums_out(self) -> bool:
        """Whether it sums out states that the generative function alone has."""
        return isinstance(self.elbo, pyro.infer.TraceEnum_ELBO)

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of Pyro's loss, averaged over the minibatch; returns the bound, summed over it."""
        loss = self.elbo.loss_and_grads(model.model, model.guide, *inputs)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(inputs[0])
        return torch.tensor(-loss)


def needs_of(target: Any) -> frozenset[Capability]:
    """The capabilities that an objective of this class needs, including Pyro's."""
    if issubclass(target, Objective):
        return target.needs
    pathwise = {Capability.PATHWISE_DRAWS} if issubclass(target, pyro.infer.TraceMeanField_ELBO) else set()
    weighs = issubclass(target, pyro.infer.RenyiELBO | pyro.infer.TraceTailAdaptive_ELBO)
    return PAIR | pathwise | ({Capability.OWN_LATENTS} if weighs else set())


def as_objective(objective: Any) -> Objective:
    """Returns an objective for the training loop, wrapping one of Pyro's.

    Raises:
        InputError: it is not an instance of an objective, or one of Pyro's that does not compute a single loss.
    """
    if isinstance(objective, Objective):
        return objective
    given = objective.__name__ if isinstance(objective, type) else type(objective).__name__
    compiled_by_pyro = (one for name, one in vars(pyro.infer).items() if name.startswith("Jit"))
    unfit = (pyro.infer.ReweightedWakeSleep, *compiled_by_pyro)
    if isinstance(objective, (type, *unfit)) or not callable(getattr(objective, "loss_and_grads", None)):
        raise InputError(
            f"objective was {given}{' itself' if isinstance(objective, type) else ''}, which fit cannot maximise; give "
            "the name of one of `pyrolatent components`, or an instance such as pyro.infer.Trace_ELBO()"
        )
    return PyroObjective(elbo=objective)
