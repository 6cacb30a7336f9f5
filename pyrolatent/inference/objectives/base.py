"""What every objective says of itself, and Pyro's own objectives in the training loop."""

from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor

from pyrolatent.declaration import Options, declared_name
from pyrolatent.errors import InputError
from pyrolatent.inference.weights import Inputs
from pyrolatent.models.model import Capability

PAIR = frozenset({Capability.DENSITY, Capability.POSTERIOR})
"""What every bound needs: a generative function and a guide."""


class Objective(Options):
    """What training maximises: by gradients of minibatches, or in steps on all data at once."""

    needs: ClassVar[frozenset[Capability]] = frozenset()
    """What a model must offer."""

    settings: ClassVar[tuple[str, ...] | None] = None
    """The settings of `fit` that it has a use for; None: all but the unused."""

    unused: ClassVar[tuple[str, ...]] = ("kl_warmup",)
    """Settings of `fit` that it has no use for."""

    by_gradient: ClassVar[bool] = True
    """Whether `accumulate` gives it for minibatches, or `update` for all data at once."""

    epochs: ClassVar[int | None] = None
    """After how many epochs it is done; None: as many as are declared."""

    compiles: ClassVar[bool] = True
    """Whether `accumulate` keeps nothing from step to step but what the model holds, so that it can be compiled."""

    takes_masks: ClassVar[bool] = True
    """Whether values may be missing."""

    adds_training_terms: ClassVar[bool] = True
    """Whether it counts a model's `training_term`."""

    distributes: ClassVar[bool] = True
    """Whether several processes can share a minibatch."""

    @property
    def num_particles(self) -> int:
        """Draws for each datapoint."""
        return 1

    @property
    def name(self) -> str:
        """By which it is declared, or that of its class."""
        return declared_name(self)

    def unfit(self, model: Any, inputs: Inputs) -> str | None:
        """Why it cannot train a model, found by a run on these inputs (x, y, mask); None if it can."""
        return None

    def prepare(self, model: Any) -> None:
        """Makes what the model keeps from step to step, where it is missing; steps then change it in place."""

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of the mean negative target of a minibatch to the parameters'.

        Args:
            model: the model.
            inputs: x, y, mask.
            warmup: factor of beta.

        Returns:
            What is reported, summed over the minibatch; higher is better.
        """
        raise NotImplementedError

    def update(self, model: Any, inputs: Inputs) -> None:
        """One step on all training data, of an objective that is not climbed by gradients."""
        raise NotImplementedError

    def extra_losses(self) -> dict[str, Tensor]:
        """Losses of the last minibatch to stand beside `train_loss`, each summed over it."""
        return {}


class PyroObjective(Objective):
    """One of Pyro's own objectives in the training loop.

    Args:
        elbo: such as `pyro.infer.Trace_ELBO()`.
    """

    adds_training_terms = False

    elbo: Any

    def __post_init__(self) -> None:
        self.needs = needs_of(type(self.elbo))  # type: ignore[misc]

    @property
    def name(self) -> str:
        """That of its class."""
        return type(self.elbo).__name__

    def accumulate(self, model: Any, inputs: Inputs, warmup: float | Tensor = 1.0) -> Tensor:
        """Adds the gradient of Pyro's loss, a mean over the minibatch, and returns the bound, a sum over it."""
        loss = self.elbo.loss_and_grads(model.model, model.guide, *inputs)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(inputs[0])
        return torch.tensor(-loss)


def needs_of(target: Any) -> frozenset[Capability]:
    """What an objective of this class needs, one of Pyro's too."""
    if issubclass(target, Objective):
        return target.needs
    pathwise = {Capability.PATHWISE_DRAWS} if issubclass(target, pyro.infer.TraceMeanField_ELBO) else set()
    return PAIR | pathwise


def as_objective(objective: Any) -> Objective:
    """An objective as the training loop takes it, one of Pyro's in a wrapper.

    Raises:
        InputError: it is no instance of an objective, or one of Pyro's that gives no single loss.
    """
    if isinstance(objective, Objective):
        return objective
    given = objective.__name__ if isinstance(objective, type) else type(objective).__name__
    compiled_by_pyro = (one for name, one in vars(pyro.infer).items() if name.startswith("Jit"))
    unfit = (pyro.infer.ReweightedWakeSleep, *compiled_by_pyro)
    if isinstance(objective, (type, *unfit)) or not callable(getattr(objective, "loss_and_grads", None)):
        raise InputError(
            f"objective was {given}{' itself' if isinstance(objective, type) else ''}, by which fit cannot train; give "
            "the name of one of `pyrolatent components`, or an instance such as pyro.infer.Trace_ELBO()"
        )
    return PyroObjective(elbo=objective)
