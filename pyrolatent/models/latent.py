"""Latent-variable models: a prior, a likelihood and a posterior as a generative function and a guide."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.params import param_with_module_name
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyrolatent.declaration import declared_name
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_inputs, as_labels, as_numbers
from pyrolatent.models.components.conditional import filled, given_gaps, masked, one_hot
from pyrolatent.models.components.distributions import innermost
from pyrolatent.models.components.missingness import from_noise
from pyrolatent.models.components.scaling import Rows, Scaling, Unscaled
from pyrolatent.models.isolation import evaluating_alone, held_parameters_expected
from pyrolatent.models.model import Capability, Model, count_parameters

NOISE = "noise_of_missing"
"""The latent site of the noise of missing cells, which is no code of x."""


def _of_datapoints(kind: str, distribution: Any, x: Tensor) -> Any:
    """A distribution that a component returned for the datapoints x.

    Raises:
        InputError: it is no distribution of Pyro, or its last batch dimension is not that of datapoints.
    """
    if not isinstance(distribution, TorchDistributionMixin):
        raise InputError(
            f"the {kind} returned {type(distribution).__name__}; its forward must return one of pyro.distributions"
        )
    batch = distribution.batch_shape
    if batch[-1:] not in ((), (1,), (len(x),)):
        raise InputError(
            f"the {kind} returned a distribution of batch shape {tuple(batch)} and event shape "
            f"{tuple(distribution.event_shape)} for a batch of {len(x)}; declare the dimensions of an event with "
            ".to_event(...)"
        )
    return distribution


class LatentVariableModel(Model):
    """p(x, z) = p(z) p(x | z) with the approximate posterior q(z | x).

    Both functions have exactly one plate, `data`, of the size of the minibatch. Models with several latent sites
    override only `generate` and `infer`.

    Args:
        event_shape: shape of one datapoint x.
        prior: forward(y=None) returns the distribution of z, of batch shape () or (batch,).
        likelihood: forward(z, y=None) returns the distribution of x.
        posterior: forward(x, y=None) returns the distribution of z.
        scaling: how x is scaled for the posterior, which then receives s; None if it is not.

    Attributes:
        missingness: p(mask | x), if it is part of the model: forward(x) returns the distribution of the mask.
    """

    always_offers = frozenset({Capability.DENSITY, Capability.LATENTS, Capability.POSTERIOR})

    exact: bool = False
    """Whether the guide is the exact posterior."""

    observed_site: str = "x"
    """The site of x in the generative function."""

    plate: str | None = None
    """The plate over datapoints; None: the one that all sites share."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.scaling = Unscaled(event_shape) if scaling is None else scaling
        self.missingness: nn.Module | None = None
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    @property
    def offers(self) -> frozenset[Capability]:
        """A density and a posterior and, unless it is a flow without an inverse, scores of any value."""
        scored = {Capability.ANY_DRAW_SCORED} if self.scores_any_value else set()
        return self.always_offers | scored | (set() if self.global_sites else {Capability.OWN_LATENTS})

    def global_draw(self, inputs: tuple[Tensor, Tensor | None, Tensor | None]) -> dict[str, Tensor]:
        """One draw of the latent sites outside the plate from the guide, by site.

        Args:
            inputs: x, y and mask of a minibatch, with which the guide is run.
        """
        return {}

    def given(self, values: dict[str, Tensor]) -> AbstractContextManager[Any]:
        """Holds latent sites outside the plate at these values within this context.

        The generative function and the guide are then those of each datapoint given the values, without these sites.
        """
        return nullcontext()

    @property
    def likelihood_name(self) -> str:
        """The name by which the likelihood is declared."""
        return declared_name(getattr(self.likelihood, "family", self.likelihood))

    @property
    def vectorises(self) -> bool:
        """Whether the two functions run with several particles side by side, in one plate around them."""
        return True

    @property
    def encoders(self) -> list[nn.Module]:
        """The networks that receive x with missing entries."""
        network = getattr(self.posterior, "network", None)
        return [] if network is None else [network]

    def validate_codes(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Refuses codes of no category in x, (batch, *event_shape)."""
        self.scaling.validate_codes(x, mask)

    def fit_scaling(self, rows: Rows) -> None:
        """Fits the scaling of x."""
        if not self.trained:
            self.scaling.fit(rows)

    def prepare(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Prepares the model for training, as in `Model.prepare`, and fits the scaling of x if it is not."""
        if self.trained:
            self.scaling.warn_if_far(x, mask)
        elif not self.scaling.fitted:
            self.scaling.fit([(x, None, mask)])
        super().prepare(x, mask)

    @property
    def sees_gaps(self) -> bool:
        """Whether q(z | x) accounts for missing entries of x: it is exact, or its encoders receive the mask."""
        seen = [getattr(network, "missing", None) is not None for network in self.encoders]
        return self.exact or (bool(seen) and all(seen))

    @property
    def scores_any_value(self) -> bool:
        """Whether the posterior can score values that it did not draw itself, which some flows cannot."""
        return getattr(getattr(self.posterior, "family", None), "scores_any_value", True)

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """The generative function: z ~ p(z), x ~ p(x | z).

        Args:
            x: data (batch, *event_shape).
            y: labels (batch,) or (batch, label_dim), of conditional models.
            mask: True where x is observed (batch, *event_shape); other entries are left out of the likelihood.
        """
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", _of_datapoints("prior", self.prior(y), x))
            self.observe(_of_datapoints("likelihood", self.likelihood(z, y), x), x, mask)

    def observe(self, likelihood: Any, x: Tensor, mask: Tensor | None) -> None:
        """x ~ p(x | z), scored where it is observed and, with `missingness`, mask ~ p(mask | x) at missing x drawn.

        Missing cells are functions of noise, a latent site of its own whose posterior is its prior, so that they have
        gradients and are weighted by the mask with the other latents.
        """
        whole = filled(x, mask, likelihood.support)
        if self.missingness is not None:
            drawn = whole if mask is None else from_noise(likelihood, self.draw_noise(x, mask))
            observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
            pyro.sample("mask", self.missingness(torch.where(observed, whole, drawn)), obs=observed.to(x.dtype))
        pyro.sample("x", masked(likelihood, mask), obs=whole)

    def draw_noise(self, x: Tensor, mask: Tensor | None) -> Any:
        """The noise of missing cells, (batch, *event_shape), where missingness is modelled and some may be missing."""
        if self.missingness is not None and mask is not None:
            return pyro.sample(NOISE, dist.Normal(torch.zeros_like(x), 1.0).to_event(len(self.event_shape)))
        return None

    def complete(self, likelihood: Any, latents: Mapping[str, Tensor]) -> Tensor:
        """Draws of x at draws of the latents, which determine missing cells where missingness is modelled."""
        drawn: Tensor = from_noise(likelihood, latents[NOISE]) if NOISE in latents else likelihood.sample()
        return drawn

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """The guide: z ~ q(z | x). The encoder receives 0 for unobserved entries, and the mask if it takes one.

        Arguments as in `generate`.
        """
        with pyro.plate("data", x.shape[0], dim=-1):
            self.draw_noise(x, mask)
            pyro.sample(
                "z", _of_datapoints("posterior", given_gaps(self.posterior, self.scaling, self.seen(x), y, mask), x)
            )

    def seen(self, x: Tensor) -> Tensor:
        """x as encoders see it, which in training may be corrupted."""
        return x

    @property
    def model(self) -> "PyroProgram":
        """The generative function for Pyro's tools, as in `SVI(m.model, m.guide, ...)`."""
        return PyroProgram(self, self.generate)

    @property
    def guide(self) -> "PyroProgram":
        """The guide for Pyro's tools."""
        return PyroProgram(self, self.infer)

    def encode(self, x: Any, y: Any = None, mask: Any = None) -> dict[str, TorchDistributionMixin]:
        """The approximate posterior of every latent site, each of batch shape (batch,), in evaluation mode.

        In a hierarchy a site is conditioned on one draw of the sites that the guide draws before it. A site that is a
        function of auxiliary ones, as in automatic guides, has no distribution here and is left out with them.

        Args:
            x: data (batch, *event_shape), numbers of any type in a tensor, an array or nested lists.
            y: labels, of models that take any.
            mask: True where x is observed.

        Raises:
            InputError: an argument does not fit the model, or no site has a distribution.
        """
        inputs = as_inputs(self, x, y, mask)
        with evaluating_alone(self):
            trace: Any = prune_subsample_sites(poutine.trace(self.infer).get_trace(*inputs))
        sites = {name: trace.nodes[name] for name in trace.stochastic_nodes if name != NOISE}
        auxiliary = [name for name, node in sites.items() if node["infer"].get("is_auxiliary")]
        found = {
            name: node["fn"]
            for name, node in sites.items()
            if name not in auxiliary and not (auxiliary and isinstance(innermost(node["fn"]), dist.Delta))
        }
        if sites and not found:
            raise InputError(
                f"the guide draws {', '.join(site for site in sites if site not in auxiliary)} by way of auxiliary "
                "sites, so that encode has no distribution to return; to_arviz has draws"
            )
        return found

    def decode(self, latents: Any, y: Any = None) -> TorchDistributionMixin:
        """The likelihood p(x | latents), in evaluation mode.

        Args:
            latents: values by site, (..., batch, *shape), numbers of any type; for a model with a single site also the
                value itself.
            y: labels (batch,) or (batch, label_dim), of models that take any, also as the value of a label site.

        Raises:
            InputError: a site is missing, unknown or of another shape, or the labels do not fit the model.
        """
        name, x = type(self).__name__, as_numbers(self, torch.zeros(()), "x")
        one = as_labels(self, [[0.0] * self.label_dim] if self.vector_labels else [0], 1) if self.conditional else None
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            sites = self.simulated(1, one)
        del sites[self.observed_site]
        needed = [site for site in sites if y is None or self.conditional or site != self.label_site]
        if not isinstance(latents, Mapping):
            if len(needed) != 1:
                raise InputError(f"{name} has several latents; give a mapping of {', '.join(needed)} to their values")
            latents = {needed[0]: latents}
        latents = {site: value for site, value in latents.items() if site != NOISE}
        if latents.keys() != {*needed}:
            raise InputError(
                f"latents of {', '.join(latents) or 'no site'} were given, but {name} decodes {', '.join(needed)}"
            )
        dtypes = {site: node["value"].dtype for site, node in sites.items()}  # whole numbers, of categories
        values = {site: as_numbers(self, value, site).to(dtypes[site]) for site, value in latents.items()}
        leads = []
        for site, value in values.items():
            event = sites[site]["fn"].event_shape
            lead = value.shape[: max(0, value.dim() - len(event))]
            if not lead or value.shape[len(lead) :] != event:
                raise InputError(
                    f"{site} has shape {tuple(value.shape)}, but {name} takes (..., batch, *{tuple(event)})"
                )
            leads.append(lead)
        try:
            batch = torch.broadcast_shapes(*leads)[-1] if leads else 1 if y is None else len(y)
        except RuntimeError:
            listed = ", ".join(f"{site} {tuple(value.shape)}" for site, value in values.items())
            raise InputError(f"latents must be of equally many datapoints, but {listed} were given") from None
        if not batch:
            raise InputError("latents of no datapoints were given; give at least one")
        labels = None if y is None else as_labels(self, y, batch)
        values = self.given_label(labels) | values
        program = poutine.condition(self.generate, data=values)
        with evaluating_alone(self):
            trace: Any = poutine.trace(program).get_trace(x.expand(batch, *self.event_shape), labels)
        return self.observation(trace)["fn"]

    def simulated(self, size: int, y: Tensor | None = None) -> dict[str, Any]:
        """Draws z ~ p(z), x ~ p(x | z) in evaluation mode: the nodes of a Pyro trace for x and every latent site.

        Args:
            size: number of draws.
            y: labels of conditional models; for a model that infers the label, the classes to draw.
        """
        program = self.simulator(y)
        x = as_numbers(self, torch.zeros(()), "x").expand(size, *self.event_shape)
        with evaluating_alone(self):
            trace: Any = prune_subsample_sites(poutine.trace(program).get_trace(x, y))
        nodes = {site: trace.nodes[site] for site in trace.stochastic_nodes}
        latents = {site: node for site, node in nodes.items() if "was_observed" not in node["infer"]}
        return {**latents, self.observed_site: self.observation(trace)}

    def expected(self, size: int, y: Tensor | None = None) -> Tensor:
        """E[x | z] at draws of z ~ p(z), (size, *event_shape); arguments as in `simulated`."""
        mean: Tensor = self.simulated(size, y)[self.observed_site]["fn"].mean
        return mean

    def simulator(self, y: Tensor | None = None) -> Callable[..., Any]:
        """The generative function with x drawn, at the labels that are given if it infers the label."""
        return poutine.condition(Unconditioned()(self.generate), data=self.given_label(y))

    def observation(self, trace: Any) -> Any:
        """The site of x in a trace of the generative function.

        Raises:
            InputError: there is none of its name.
        """
        if self.observed_site not in trace.nodes:
            sites = [name for name in trace.nodes if trace.nodes[name]["type"] == "sample"]
            raise InputError(f"the data are read at the site 'x', but the model has the sites {sites}; name it x")
        return trace.nodes[self.observed_site]

    def given_label(self, y: Tensor | None) -> dict[str, Tensor]:
        """The labels as the value of the label site, one-hot, for a model that infers the label; else empty."""
        return {} if y is None or self.label_site is None else {self.label_site: one_hot(y, self.label_dim)}

    def training_term(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor | None:
        """A term that training maximises besides the bound, (batch,), never part of a reported bound; None here."""
        return None

    def log_evidence(self, x: Any, mask: Any = None) -> Tensor | None:
        """log p(x) of the observed entries, (batch,), nats, if it has a closed form; None here."""
        return None

    def __str__(self) -> str:
        y = ", y" if self.conditional else ""
        parts = {"p(z)": self.prior, f"p(x | z{y})": self.likelihood, f"q(z | x{y})": self.posterior}
        lines = [f"{name:<{9 + len(y)}}= {part}; {count_parameters(part):,}" for name, part in parts.items()]
        lines += [f"p(mask | x) = {self.missingness}"] * (self.missingness is not None) + self.scaling.lines
        return "\n  ".join([super().__str__(), *lines])


def only_records(node: Any) -> bool:
    """Whether a site has no distribution: it is `pyro.deterministic`, or an observed point, as `reparam` leaves."""
    point = node["is_observed"] and isinstance(innermost(node["fn"]), dist.Delta)
    return bool(point or node["infer"].get("_deterministic"))


class Unconditioned(UnconditionMessenger):
    """Draws what is observed, as `poutine.uncondition` does, but keeps what is only recorded."""

    def _pyro_sample(self, msg: Any) -> None:
        if not only_records(msg):
            super()._pyro_sample(msg)


def owner_of(program: Any) -> LatentVariableModel | None:
    """The model whose generative function or guide this is; None for any other function."""
    owner = getattr(program, "owner", getattr(program, "__self__", None))
    return owner if isinstance(owner, LatentVariableModel) else None


def require_labels(label_dim: int, name: str) -> None:
    """Refuses to build a model of labels for data without labels.

    Raises:
        InputError: there are no labels.
    """
    if not label_dim:
        raise InputError(f"{name} is a model of labels, but the data has none; give labelled data, or declare vae")


class PyroProgram(nn.Module):
    """A generative function or a guide for Pyro's tools: a module that registers its parameters when called.

    Each model has its own name in the parameter store, numbered in the order in which models first run; under one fixed
    name a second model in the same process would silently receive the parameters of the first. The values of a store
    that was loaded are copied to the model when it next runs.

    Args:
        owner: the model that holds the parameters.
        function: one of its functions.
    """

    def __init__(self, owner: Model, function: Callable[[Tensor, Tensor | None, Tensor | None], None]) -> None:
        super().__init__()
        self.owner = owner
        self.function = function

    def forward(self, x: Tensor | None = None, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Runs the function on a minibatch, as in `LatentVariableModel.generate`.

        Args:
            x: data (batch, *event_shape); None lets the generative function draw x, one or one for each label.
            y: labels.
            mask: True where x is observed.

        Raises:
            InputError: the guide is run without x, or the parameter store holds the parameters of another model under
                this one's name.
        """
        function, owner = self.function, self.owner
        if x is None:
            if not isinstance(owner, LatentVariableModel) or function != owner.generate:
                raise InputError("the guide was run without x, of which it is; give x")
            function = owner.simulator(y)
            x = as_numbers(owner, torch.zeros(()), "x").expand(1 if y is None else len(y), *owner.event_shape)
        if not owner.met:
            owner.meet(x, y, mask)
        _share_parameters(owner)
        with held_parameters_expected():
            pyro.module(_store_name(owner), owner)
        owner.run_by_pyro()
        function(x, y, mask)


def _share_parameters(model: Model) -> None:
    """Replaces a model's entries in the parameter store by the model's own parameters, with the values of the store.

    Pyro's optimisers update the tensors of the store, which are not the model's after `load` and `set_state`. A
    parameter that has replaced another one in the model keeps its value.
    """
    started = model in _names
    name, store = _store_name(model), pyro.get_param_store()
    stored = dict(store.named_parameters())
    for key, parameter in model.named_parameters():
        full = param_with_module_name(name, key)
        if not parameter.is_contiguous():  # the store would keep a copy
            parameter.data = parameter.data.contiguous()
        held = stored.get(full)
        if held is not None and held is not parameter:
            if held.shape != parameter.shape:
                raise InputError(
                    f"the parameter store holds {full} of shape {tuple(held.shape)}, but {type(model).__name__} has it "
                    f"of shape {tuple(parameter.shape)}; load the store of this model, or call pyro.clear_param_store()"
                )
            trained = parameter.requires_grad
            if not started or parameter in _shared:
                parameter.data.copy_(held)
                model.fitted = True
            store[full] = parameter
            parameter.requires_grad_(trained)
        _shared[parameter] = full


_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_shared = WeakTensorKeyDictionary()
_count = itertools.count()


def _store_name(module: nn.Module) -> str:
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_count)}"
    return _names[module]
