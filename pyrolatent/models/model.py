"""What every model says of itself."""

import warnings
from enum import StrEnum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyrolatent.errors import InputError

MaskInput = Literal["auto", "always", "never"]
"""Whether encoders are told which entries are missing: "auto" if they are trained on data with a mask."""


class Capability(StrEnum):
    """What a model may offer and an objective may need, in words that stand after "no"."""

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


class Model(nn.Module):
    """A model of datapoints x.

    Args:
        event_shape: shape of one datapoint x.

    Attributes:
        label_dim: number of classes or width of the labels that the model knows, 0 for none.
        conditional: whether the model is one of x given y, so that it must be given labels.
        vector_labels: whether its labels are vectors and not classes. `fit` sees it in the data and a run records it;
            it is no part of the state that `state_dict` gives.
        divisor: by which `load_data` divided integers, as it does images, for the model to be trained on; recorded as
            `vector_labels` is.
        label_site: the latent site that is the label, of models that infer it.
        mask_input: whether its encoders are told which entries are missing.
        fitted: whether `fit` has trained it or a state was loaded, so that training goes on from what was learnt.
    """

    always_offers: ClassVar[frozenset[Capability]] = frozenset()
    """What every model of the class offers."""

    label_dim: int = 0
    conditional: bool = False
    vector_labels: bool = False
    divisor: float = 1.0
    label_site: str | None = None
    mask_input: MaskInput = "auto"
    fitted: bool = False

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.register_load_state_dict_post_hook(_loaded)
        self._versions: list[int] | None = None

    @property
    def offers(self) -> frozenset[Capability]:
        """What can be done with the model; an objective says what it `needs`."""
        return self.always_offers

    def require(self, capability: Capability, instead: str) -> None:
        """Refuses to go on with a model that does not offer something.

        Raises:
            InputError: it does not; `instead` says what to do.
        """
        if capability not in self.offers:
            raise InputError(f"{type(self).__name__} has no {capability}; {instead}")

    @property
    def encoders(self) -> list[nn.Module]:
        """The networks that see x with its gaps."""
        return []

    def prepare(self, x: Tensor, mask: Tensor | None = None) -> None:
        """What training does first, before there is an optimiser.

        Encoders get the mask as a second input if training data have one. Every part with an `initialise` starts where
        the data are; where the model has been trained before, every part with a `resume` is shown them instead.

        Args:
            x: data to start at (batch, *event_shape).
            mask: True where x is observed, None if all of it is.

        Raises:
            InputError: an encoder that must see masks is no network that can.
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
                        f"the encoder {type(network).__name__} is not told which entries are missing: it sees 0 there; "
                        "declare mlp or conv, or mask_input: never",
                        stacklevel=5,
                    )
                else:
                    take_mask()
        trained = self.fitted or self._versions not in (None, self._versions_now())
        for part in self.modules():
            begin = getattr(part, "resume" if trained else "initialise", None)
            if callable(begin):
                begin(x, mask)

    def __str__(self) -> str:
        return f"{type(self).__name__} of x {tuple(self.event_shape)}, {count_parameters(self):,} parameters"

    def run_by_pyro(self) -> None:
        """Told when Pyro's tools run the model, whose optimisers then change its parameters in place."""
        if self._versions is None:
            self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        return [parameter._version for parameter in self.parameters()]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _loaded(model: Any, keys: Any) -> None:
    model.fitted = True
