"""The base class of models, and the capabilities that a model may offer."""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyrolatent.errors import InputError

MaskInput = Literal["auto", "always", "never"]
"""Whether encoders receive the mask; "auto" if they are trained on data with one."""


class Capability(StrEnum):
    """A capability that a model may offer and an objective may need, worded to follow "no" in messages."""

    DENSITY = "density of x"
    LATENTS = "latent codes"
    POSTERIOR = "posterior of latents"
    CODES = "codes without a distribution"
    ENERGY = "energy F(x)"
    HIDDEN_UNITS = "hidden units"
    LOG_Z = "log Z that can be summed"
    GRADIENT_IN_X = "gradient of log p in x"
    SOLUTION = "solution in closed form"
    EM = "steps of expectation-maximisation"
    PATHWISE_DRAWS = "gradients through the draws of its posterior"
    ANY_DRAW_SCORED = "posterior that scores values it did not draw itself"
    OWN_LATENTS = "latents that are each of one datapoint alone"


class Model(nn.Module):
    """A model of datapoints x.

    Args:
        event_shape: shape of one datapoint x.

    Attributes:
        columns: the columns of x, if the event shape is that of a table; None if it is not.
        label_dim: number of classes or width of label vectors; 0 for a model without labels.
        conditional: whether the model is one of x given y, which needs labels.
        vector_labels: whether labels are vectors rather than classes. `fit` reads it from the data and a run records
            it; it is not part of `state_dict`.
        divisor: number by which `load_data` divided the integers of the training data, such as 255 for images;
            recorded like `vector_labels`.
        label_site: the latent site that is the label, in models that infer it.
        mask_input: whether encoders receive the mask.
        met: whether the model has seen its first data, for a model that is completed by them.
        fitted: whether the model has been trained by `fit` or its state was loaded, so that training continues.
    """

    always_offers: ClassVar[frozenset[Capability]] = frozenset()
    """Capabilities that every model of the class offers."""

    label_dim: int = 0
    conditional: bool = False
    vector_labels: bool = False
    divisor: float = 1.0
    label_site: str | None = None
    mask_input: MaskInput = "auto"
    fitted: bool = False
    met: bool = True

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.columns = getattr(event_shape, "columns", None)
        self.register_load_state_dict_post_hook(_loaded)
        self._versions: list[int] | None = None

    @property
    def offers(self) -> frozenset[Capability]:
        """The capabilities of the model; those that an objective requires are its `needs`."""
        return self.always_offers

    def meet(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, label_dim: int = 0) -> None:
        """Called with the first data that a model which is not whole is used with.

        Args:
            x: data (batch, *event_shape).
            y: labels, None for none.
            mask: True where x is observed, None if all of it is.
            label_dim: number of classes or width of the labels.
        """

    @property
    def observes_x(self) -> bool:
        """Whether x itself is modelled, so that it can be drawn."""
        return True

    @property
    def global_sites(self) -> list[str]:
        """Latent sites outside the plate over datapoints, such as the weights of a Bayesian decoder."""
        return []

    @property
    def encodes_datapoints(self) -> bool:
        """Whether each datapoint has latents of its own."""
        return True

    @property
    def takes_unknown_labels(self) -> bool:
        """Whether the label may be unknown, -1, for some datapoints."""
        return self.label_site is not None

    def of_rows(self, rows: Tensor, datapoints: int) -> AbstractContextManager[Any]:
        """Runs the model on a minibatch of the training data within this context.

        Args:
            rows: indices of the minibatch in the training data, (batch,).
            datapoints: number of all training datapoints.
        """
        return nullcontext()

    @property
    def of_training_rows(self) -> bool:
        """Whether the model has parameters for each row of the training data, and none for others."""
        return False

    @property
    def own_states(self) -> list[str]:
        """Latent sites that the generative function has and the guide has not, so that they are to be summed out."""
        return []

    def warn_of_size(self, datapoints: int) -> None:
        """Warns if the model declares another number of training datapoints."""

    def require(self, capability: Capability, instead: str) -> None:
        """Requires that the model offers a capability.

        Raises:
            InputError: it does not; the message ends with `instead`, what to do.
        """
        if capability not in self.offers:
            raise InputError(f"{type(self).__name__} has no {capability}; {instead}")

    @property
    def encoders(self) -> list[nn.Module]:
        """The networks that receive x with missing entries."""
        return []

    @property
    def trained(self) -> bool:
        """Whether the model has been trained before, by `fit`, by Pyro or before it was saved."""
        return self.fitted or (self._versions is not None and self._versions != self._versions_now())

    def validate_codes(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Refuses codes of no category in x, of models of tables with words."""

    def fit_scaling(self, rows: Iterable[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
        """Fits the scaling of x, of models that have one, to batches of x, y and mask unless the model is trained."""

    def prepare(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Prepares the model for training, before the optimiser is built.

        Encoders receive the mask as a second input if the training data have one. Every sub-module with a method
        `initialise` is initialised from the data; if the model has been trained before, every one with a method
        `resume` is called instead.

        Args:
            x: data to start from (batch, *event_shape).
            mask: True where x is observed, None if all of it is.

        Raises:
            InputError: an encoder must receive masks but cannot.
        """
        if self.mask_input == "always" or (self.mask_input == "auto" and mask is not None):
            for network in self.encoders:
                take_mask = getattr(network, "take_mask", None)
                if take_mask is None and self.mask_input == "always":
                    raise InputError(
                        f"mask_input was always, but the encoder {type(network).__name__} takes no mask; declare mlp "
                        "or conv, or mask_input: never"
                    )
                if take_mask is None:
                    warnings.warn(
                        f"the encoder {type(network).__name__} does not receive the mask and sees 0 for missing "
                        "entries; declare mlp or conv, or mask_input: never",
                        stacklevel=5,
                    )
                else:
                    take_mask()
        for part in self.modules():
            begin = getattr(part, "resume" if self.trained else "initialise", None)
            if callable(begin):
                begin(x, mask)

    def __str__(self) -> str:
        return f"{type(self).__name__} of x {tuple(self.event_shape)}, {count_parameters(self):,} parameters"

    def run_by_pyro(self) -> None:
        """Hook called when Pyro's tools run the model, whose optimisers then update its parameters in place."""
        if self._versions is None:
            self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        return [parameter._version for parameter in self.parameters()]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _loaded(model: Any, keys: Any) -> None:
    model.fitted = True
