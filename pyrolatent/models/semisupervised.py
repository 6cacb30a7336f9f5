"""Semi-supervised VAE: the label is a latent, observed for some datapoints and summed out for the others."""

from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
from annotated_types import Ge
from torch import Tensor, nn

from pyrolatent.declaration import Kind, component
from pyrolatent.models.components.conditional import conditional, given_gaps
from pyrolatent.models.isolation import statistics_held
from pyrolatent.models.latent import require_labels
from pyrolatent.models.model import Model
from pyrolatent.models.vae import Autoencoding

NEVER = -1e9
"""The log-probability of an impossible class, finite so that its product with a probability of 0 is 0."""


@component("semi_supervised_vae", "model")
class SemiSupervisedVAE(Autoencoding):
    """Model M2: p(y) p(z) p(x | z, y) with q(y | x) q(z | x, y) (Kingma et al. 2014, 1406.5298).

    With L(x, y) = E_q(z | x, y)[log p(y) + log p(x | z, y) + log p(z) - log q(z | x, y)], the bound is L(x, y) where y
    is known and sum_y q(y | x) (L(x, y) - log q(y | x)) where it is not. Training adds classifier_weight log q(y | x)
    for each known label. Evaluated without labels it is a model of x with the evidence log p(x).

    Args:
        event_shape: shape of one datapoint x.
        label_dim: number of classes; p(y) is uniform.
        classifier: the network from x to the logits of q(y | x).
        classifier_weight: factor of log q(y | x) for each known label.
        **options: those of `Autoencoding`.
    """

    label_site = "y"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        label_dim: int,
        *,
        classifier: Annotated[Any, Kind("network")] = "mlp",
        classifier_weight: Annotated[float, Ge(0)] = 50.0,
        **options: Any,
    ) -> None:
        require_labels(label_dim, "semi_supervised_vae")
        super().__init__(event_shape, label_dim, **options)
        self.classifier_weight = classifier_weight
        self.classifier = conditional(
            "posterior", "one_hot_categorical", classifier, self.scaling.output_shape, (label_dim,)
        )
        self.label_logits: Tensor
        self.register_buffer("label_logits", torch.zeros(label_dim), persistent=False)

    @property
    def encoders(self) -> list[nn.Module]:
        """The networks that receive x with missing entries."""
        classifier: Any = self.classifier
        return [*super().encoders, classifier.network]

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """y ~ p(y), z ~ p(z), x ~ p(x | z, y); classes y (batch,) are observed unless negative."""
        known, given = self._known(x, y)
        with pyro.plate("data", x.shape[0], dim=-1):
            label = pyro.sample("y", dist.OneHotCategorical(logits=self.label_logits))
            pyro.factor("label", torch.where(known & ((label * given).sum(-1) == 0), NEVER, 0.0))
            z = pyro.sample("z", self.prior())
            self.observe(self.likelihood(z, label), x, mask)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """y ~ q(y | x), enumerated, unless it is known; z ~ q(z | x, y)."""
        known, given = self._known(x, y)
        seen = self.seen(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            logits = torch.where(known.unsqueeze(-1), NEVER * (1 - given), self._class_logits(seen, mask))
            label = pyro.sample("y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            lead = torch.broadcast_shapes(label.shape[:-1], x.shape[:1])
            self.draw_noise(x.expand(*lead, *self.event_shape), mask)  # of each state, as z is
            pyro.sample("z", given_gaps(self.posterior, self.scaling, seen, label, mask))

    def training_term(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor | None:
        """classifier_weight log q(y | x) where y is known, else 0, (batch,)."""
        known, given = self._known(x, y)
        with statistics_held():  # the guide has updated them
            log_q = self._class_logits(self.seen(x), mask).log_softmax(-1)
        return self.classifier_weight * known * (log_q * given).sum(-1)

    def _class_logits(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return given_gaps(self.classifier, self.scaling, x, None, mask).logits

    def _known(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Whether each label is known, (batch,), and the labels one-hot, (batch, label_dim)."""
        classes = x.new_full(x.shape[:1], -1, dtype=torch.long) if y is None else y
        given = classes.unsqueeze(-1) == torch.arange(self.label_dim, device=x.device)
        return classes >= 0, given.to(x.dtype)

    def __str__(self) -> str:
        p_x, q = str(self.likelihood), str(self.posterior)
        lines = [
            f"p(y) = 1 / {self.label_dim}",
            f"p(z) = {self.prior}",
            f"p(x | z, y) = {p_x}",
            f"q(y | x) = {self.classifier}",
            f"q(z | x, y) = {q}",
        ]
        lines += self.scaling.lines
        return "\n  ".join([Model.__str__(self), *lines])
