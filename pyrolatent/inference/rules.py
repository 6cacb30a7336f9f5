"""Rules that refuse invalid combinations of model, data and objective before training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import Unit, constraints
from torch import nn

from pyrolatent.data.splits import Batch, Data, Split
from pyrolatent.data.tables import Column, numbered
from pyrolatent.declaration import declared_name, registered
from pyrolatent.errors import InputError
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import MAX_ELEMENTS
from pyrolatent.inference.objectives.base import needs_of
from pyrolatent.inference.weights import Inputs, Weights, arguments, training_arguments, weigh
from pyrolatent.models.arrays import as_labels, device_and_dtype, validate_divisor
from pyrolatent.models.components.distributions import innermost
from pyrolatent.models.components.family import domain
from pyrolatent.models.latent import LatentVariableModel, only_records
from pyrolatent.models.model import Capability, Model

SHOWN = 1000
"""Largest number of rows that a model which is not whole is shown."""


@dataclass(frozen=True)
class Case:
    """A combination of a model, data and an objective."""

    model: Any
    data: Data
    objective: Any

    @cached_property
    def weights(self) -> Weights:
        """The model's draws for one datapoint."""
        with torch.no_grad(), evaluating(self.model):
            one = self.data.train.to(*device_and_dtype(self.model)).batch(slice(0, 1))
            inputs, named = training_arguments(self.model, one), self.model.plate is not None
            return weigh(self.model.generate, self.model.infer, *inputs, outside=True, jointly=named)

    def lacks(self, need: Capability | None, of_what: str = "") -> str | None:
        """The message that the model does not offer what the objective needs, with suitable objectives; else None."""
        if need is None:
            return None
        offers = set(self.model.offers)
        if Capability.POSTERIOR in offers and not self.weights.without_path:
            offers.add(Capability.PATHWISE_DRAWS)
        fitting = [name for name, needs in needs_by_objective().items() if needs <= offers]
        listed = ", ".join(fitting[:6]) + (", ..." if len(fitting) > 6 else "")
        otherwise = f", or {OTHERWISE[need]}" if need in OTHERWISE else ""
        model = type(self.model).__name__
        return (
            f"{model} has no {need}{of_what}, which {self.objective.name} needs; declare objective: {listed}{otherwise}"
        )


class Rule(NamedTuple):
    """A rule about combinations.

    Attributes:
        refuses: what is refused.
        instead: what to declare instead; None if the message of `broken` includes it.
        broken: returns the message if a combination breaks the rule, else None; it may also raise the error.
        of: a capability of the models that the rule applies to; None for all models.
    """

    refuses: str
    instead: str | None
    broken: Callable[[Case], str | None]
    of: Capability | None = None


def validate_combination(model: Any, data: Data, objective: Any) -> None:
    """Refuses an invalid combination of model, data and objective.

    Raises:
        InputError: the combination breaks a rule; the message names both sides and what to declare.
    """
    same_event_shape(model, data)
    case = Case(model, data, objective)
    left_to_pyro = bool(model.own_states) and objective.sums_out  # whose draws no other rule could look at
    for rule in RULES:
        about = rule.of is None or (rule.of in model.offers and not left_to_pyro)
        if about and (message := rule.broken(case)):
            raise InputError(f"{message}; {rule.instead}" if rule.instead else message)


def require_data(data: Any) -> None:
    """Requires a `Data` object.

    Raises:
        InputError: the argument is something else, such as an array.
    """
    if not isinstance(data, Data):
        raise InputError(f"data is a {type(data).__name__}; give pl.load_data(x), which splits it and keeps its labels")


def same_event_shape(model: Model, data: Data) -> None:
    """Requires a `Data` object with the model's event shape and units."""
    require_data(data)
    introduce(model, data)
    if model.event_shape != torch.Size(data.event_shape):
        raise InputError(
            f"the model is over events of shape {tuple(model.event_shape)}, but {data.name} holds {data.event_shape}; "
            "build the model for data.event_shape"
        )
    if model.columns is not None and data.columns is not None:
        _require_columns(model.columns, data.columns, data.name)
    if data.divisor == 1:
        validate_divisor(model, data.test.x)


def _require_columns(known: Sequence[Column], given: Sequence[Column], name: str) -> None:
    """Requires a table to have the columns of the model, and their words, whose codes would stand for others."""
    beside = "load it beside the training data, as pl.load_data(training, test=...), which matches both by name"
    names = [[column.name for column in columns] for columns in (known, given)]
    if names[0] != names[1] and not any(each == [column.name for column in numbered(len(each))] for each in names):
        first, other = next(pair for pair in zip(*names, strict=True) if pair[0] != pair[1])
        raise InputError(f"{name} has a column {other!r} where the model has {first!r}; {beside}")
    for column, other in zip(known, given, strict=True):
        if column.categories != other.categories:
            words = [", ".join(each.categories[:5]) or "numbers" for each in (column, other)]
            raise InputError(
                f"the column {column.name!r} of the model holds {words[0]}, but that of {name} {words[1]}; {beside}"
            )


def introduce(model: Model, data: Data) -> None:
    """Shows a model that is not whole some rows of the data that it is used with, their extremes among them."""
    if not model.met:
        device, dtype = device_and_dtype(model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            of_rows = data.train.x.flatten(1)
            first = torch.zeros((), dtype=torch.long, device=of_rows.device)
            extremes = torch.stack([first, of_rows.amax(1).argmax(), of_rows.amin(1).argmin()])
            most = min(SHOWN, MAX_ELEMENTS // of_rows.shape[1], len(of_rows))
            index = torch.cat([extremes, torch.arange(3, max(3, most), device=of_rows.device)])
            rows = data.train.to(device, dtype).batch(index.to(device))
        model.meet(*rows, data.label_dim)
        model.columns = data.columns


def require_one_observed_site(model: LatentVariableModel, one: Batch) -> None:
    """Requires a model to observe only x, for checks that simulate x.

    Raises:
        InputError: the model observes another site, which the message names.
    """
    if not model.observes_x:
        return  # what simulates x refuses itself
    with torch.no_grad(), evaluating(model):
        trace: Any = weigh(model.generate, model.infer, *arguments(model, one), outside=True).model_trace
    for site in trace.observation_nodes:
        node = trace.nodes[site]
        if site != model.observed_site and not isinstance(node["fn"], Unit) and not only_records(node):
            raise InputError(
                f"a model is checked by simulating x, but {type(model).__name__} observes {site!r} beside it; make "
                "both one site, or check the part of the model that observes x"
            )


def require_latents(model: Model) -> None:
    """Requires a model with latents.

    Raises:
        InputError: the model has no latents.
    """
    model.require(Capability.LATENTS, "fit a vae")


def require_support(model: LatentVariableModel, inputs: Inputs, *, grey: bool = False) -> None:
    """Requires observed values to lie in the support of the likelihood; the model is in evaluation mode.

    Args:
        model: a model with latents.
        inputs: x, y, mask.
        grey: whether values between 0 and 1 may stand for binary ones.

    Raises:
        InputError: some do not.
    """
    x, y, mask = inputs
    support: Any = model.observation(poutine.trace(model.generate).get_trace(x, y))["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    allowed = constraints.unit_interval if grey and support is constraints.boolean else support
    within = torch.ones_like(x, dtype=torch.bool) if allowed.event_dim else allowed.check(x)
    outside = int((~within if mask is None else ~within & mask).sum())
    if outside:
        raise InputError(f"{outside} observed values of x lie outside the support of the likelihood, {allowed}")


def split_for(model: Model, data: Data, split: str) -> Split:
    """A split of the data for a model to score, on the model's device.

    Args:
        model: the model.
        data: the result of `load_data`.
        split: "train", "validation" or "test".

    Raises:
        InputError: the model has no latents, `data` is not a `Data`, there is no such split, or events or labels do not
            fit the model.
    """
    require_latents(model)
    require_data(data)
    part = data.split(split)
    if model.of_training_rows and split != "train":
        raise InputError(
            f"{type(model).__name__} takes the numbers of the rows of its training data, and the {split} split has "
            "others; give split='train'"
        )
    same_event_shape(model, data)
    part = part.to(*device_and_dtype(model))
    if model.conditional and part.y is None:
        raise InputError(f"{type(model).__name__} is a model of x given y, but {data.name} has no labels; give some")
    if model.label_dim and part.y is not None:
        as_labels(model, part.y, len(part), known=model.conditional)
    return part


def _lacking(case: Case) -> str | None:
    missing = case.objective.needs - {Capability.PATHWISE_DRAWS} - case.model.offers
    return case.lacks(next((need for need in Capability if need in missing), None))


def _pathwise(case: Case) -> str | None:
    if Capability.PATHWISE_DRAWS not in case.objective.needs or not case.weights.without_path:
        return None
    sites = ", ".join(case.weights.without_path)
    return case.lacks(Capability.PATHWISE_DRAWS, f" (of {sites}: discrete, or not reparameterised)")


@cache
def needs_by_objective() -> dict[str, frozenset[Capability]]:
    """The needs of each objective that can be declared by name."""
    return {name: needs_of(entry.target) for name, entry in sorted(registered("objective").items())}


def _complete_data(case: Case) -> str | None:
    if not case.objective.takes_masks and case.data.train.mask is not None:
        return f"{case.objective.name} is a solution for complete data, but {case.data.name} has a mask"
    return None


def _energy_data(case: Case) -> str | None:
    name = declared_name(case.model)
    if case.data.train.mask is not None:
        return f"{name} is trained on complete data, but {case.data.name} has a mask"
    if case.data.binarize == "relaxed":
        return f"{name} is a density of x, not a cross-entropy, but {case.data.name} is declared binarize: relaxed"
    case.data.validate_support(case.model.support, name)
    return None


def _smooth(case: Case) -> str | None:
    if Capability.GRADIENT_IN_X in case.model.offers and any(
        isinstance(module, nn.ReLU) for module in case.model.modules()
    ):
        return "energies over real numbers are scored by score matching, which does not see rectifiers' curvature"
    return None


def _labels(case: Case) -> str | None:
    if case.model.label_dim and case.model.label_dim != case.data.label_dim:
        return (
            f"the model was built for labels of {case.model.label_dim}, but {case.data.name} has {case.data.label_dim}"
        )
    return None


def _label_vectors(case: Case) -> str | None:
    y = case.data.train.y
    if case.model.label_dim and not case.model.conditional and y is not None and y.is_floating_point():
        return f"the labels of {type(case.model).__name__} are classes, but {case.data.name} has label vectors"
    return None


def _unknown_labels(case: Case) -> str | None:
    model = case.model
    if model.label_dim and not model.takes_unknown_labels:
        for part, split in zip(("training", "validation", "test"), case.data.splits, strict=True):
            if split.y is None or split.y.is_floating_point():
                continue
            if unknown := int((split.y < 0).sum()):
                return f"{type(model).__name__} is given every label, but {unknown:,} {part} labels are unknown"
    return None


def _parameters(case: Case) -> str | None:
    own = {id(parameter) for parameter in case.model.parameters()}
    for trace in (case.weights.guide_trace, case.weights.model_trace):
        for name in trace.param_nodes:
            value = trace.nodes[name]["value"]
            if id(value) not in own and id(getattr(value, "unconstrained", lambda: None)()) not in own:
                return f"{type(case.model).__name__} uses pyro.param({name!r}), which fit neither trains nor saves"
    return None


def _observed_site(case: Case) -> str | None:
    if case.model.observes_x:
        case.model.observation(case.weights.model_trace)
    return None


def _support(case: Case) -> str | None:
    if not case.model.observes_x:
        return None
    case.data.validate_support(
        case.model.observation(case.weights.model_trace)["fn"].support,
        f"the {case.model.likelihood_name} likelihood",
    )
    return None


def _words(case: Case) -> str | None:
    words = [column.name for column in case.data.columns or () if len(column.categories) > 2]
    if not words or not isinstance(getattr(case.model, "likelihood", None), nn.Module):
        return None
    support = case.model.observation(case.weights.model_trace)["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete or hasattr(support, "of_column"):
        return None
    return (
        f"{case.data.name} holds words ({', '.join(words[:5])}), which the {case.model.likelihood_name} likelihood "
        "takes for numbers"
    )


def _no_gaps(case: Case) -> str | None:
    if case.model.missingness is not None and case.data.train.mask is None:
        return f"missingness is learned from missing cells, of which the training part of {case.data.name} has none"
    return None


def _latent_supports(case: Case) -> str | None:
    for site in case.weights.latents:
        if site not in case.weights.model_trace.nodes:
            continue
        fns = [trace.nodes[site]["fn"] for trace in (case.weights.model_trace, case.weights.guide_trace)]
        if isinstance(innermost(fns[1]), dist.Delta):
            continue  # a point, such as a transformed auxiliary draw
        prior, posterior = (domain(fn.support) for fn in fns)
        if prior != posterior:
            return f"the prior of {site} is over {prior}, but its posterior is over {posterior}"
    return None


def _training_term(case: Case) -> str | None:
    own = type(case.model).training_term is not LatentVariableModel.training_term
    if own and not case.objective.adds_training_terms:
        name = case.objective.name
        return f"{type(case.model).__name__} adds a term to the bound, which Pyro's {name} leaves out"
    return None


def _unfit(case: Case) -> str | None:
    with torch.no_grad(), evaluating(case.model):
        one = case.data.train.to(*device_and_dtype(case.model)).batch(slice(0, 1))
        reason: str | None = case.objective.unfit(case.model, training_arguments(case.model, one))
        return reason


WHERE = {
    Capability.LOG_Z: "energies whose states can be summed",
    Capability.GRADIENT_IN_X: "energies over real numbers",
    Capability.PATHWISE_DRAWS: "posteriors that are reparameterised, or summed out",
    Capability.ANY_DRAW_SCORED: "every posterior but `planar`",
    Capability.OWN_LATENTS: "all but Pyro programs with latents outside the plate over datapoints",
}
"""Which models offer the capabilities that depend on more than their class."""

OTHERWISE = {
    Capability.PATHWISE_DRAWS: "a relaxed posterior, estimator: enumerate, or config_enumerate of a Pyro guide",
    Capability.ANY_DRAW_SCORED: "posterior: iaf, coupling or spline",
    Capability.CODES: "model: autoencoder",
}
"""What else to declare if a model lacks what an objective needs."""

RULES = (
    Rule("an objective that needs what the model does not offer (below)", None, _lacking),
    Rule(
        "closed_form on data with missing values",
        "declare objective: em where the model has it, or elbo",
        _complete_data,
    ),
    Rule(
        "an energy over data outside its support, with missing values or of grey values in a cross-entropy",
        "declare other visible units, or how the data are binarized",
        _energy_data,
        of=Capability.ENERGY,
    ),
    Rule(
        "an energy of rectifiers over real numbers",
        "declare a smooth activation, as in energy: {mlp: {activation: silu}}",
        _smooth,
        of=Capability.ENERGY,
    ),
    Rule(
        "a model of labels on data without them or with others",
        "give data with the labels that the model was built for",
        _labels,
    ),
    Rule(
        "a model of classes (semi_supervised_vae, rbm with labels) where labels are vectors",
        "give classes 0, 1, 2, ... and -1 where unknown, or declare conditional_vae",
        _label_vectors,
    ),
    Rule(
        "a model of x given y, or a Pyro program with labels, where labels are unknown",
        "declare semi_supervised_vae, or give all labels",
        _unknown_labels,
    ),
    Rule(
        "a model whose functions use pyro.param",
        "make it a torch.nn.Parameter of the model, or train model.model and model.guide with Pyro's SVI",
        _parameters,
        of=Capability.POSTERIOR,
    ),
    Rule(
        "a model without an observed site `x`",
        "name the site of the data x",
        _observed_site,
        of=Capability.POSTERIOR,
    ),
    Rule(
        "data outside the likelihood's support, such as grey values under an exactly discrete likelihood; `binarize: "
        "relaxed` goes with bernoulli alone, as a cross-entropy",
        "declare another likelihood, or how the data are binarized or dequantized",
        _support,
        of=Capability.POSTERIOR,
    ),
    Rule(
        "columns of words under a likelihood of real numbers",
        "declare likelihood: {columns: auto}",
        _words,
        of=Capability.POSTERIOR,
    ),
    Rule("missingness without missing cells", "leave missingness out", _no_gaps, of=Capability.POSTERIOR),
    Rule(
        "a prior and a posterior over different sets",
        "declare families over the same set, or map the posterior onto the prior's with posterior: mapped",
        _latent_supports,
        of=Capability.POSTERIOR,
    ),
    Rule("an objective that needs gradients through draws that have none (below)", None, _pathwise),
    Rule(
        "local with a posterior that is not a network and a family (exact, the prior itself, a ladder)",
        "declare objective: elbo, or for hierarchical_vae inference: bottom_up",
        _unfit,
    ),
    Rule(
        "a model with a training term of its own under an objective of Pyro's",
        "declare objective: elbo or analytic_elbo",
        _training_term,
        of=Capability.POSTERIOR,
    ),
)
"""The rules, in the order in which they are applied."""

BUILT_INTO_PARTS = (
    (
        "prior vamp with a posterior that scores only its own draws (planar), or that takes labels",
        "another prior or posterior",
    ),
    ("prior label_normal or conditional_vae without labels", "labelled data"),
    ("a flow other than planar over one dimension", "a larger latent_dim, or a family"),
    ("a mask under a likelihood whose elements are not independent", "a likelihood that factorises"),
    ("a network whose input or output has another shape than the distributions need", "the message states both shapes"),
)
"""What components refuse when they are built."""

INTRODUCTION = (
    "# What goes with what",
    "",
    "Invalid declarations are refused before training, with a message that names both sides. The rules are in",
    "`pyrolatent/inference/rules.py`, which generates this page:",
    "",
    "    python -c \"from pyrolatent.inference import rules; print(rules.page(), end='')\" > docs/rules.md",
    "",
)


OFFERS = ("", "What objectives need and models offer:", "", "| | needed by | offered by |", "| --- | --- | --- |")


def page() -> str:
    """The documentation page that lists the rules, in Markdown."""
    rows = [(rule.refuses, rule.instead or "an objective that it can be trained by") for rule in RULES]
    table = [f"| {refuses} | {instead} |" for refuses, instead in [*rows, *BUILT_INTO_PARTS]]
    models: dict[str, Any] = {name: entry.target for name, entry in sorted(registered("model").items())}
    offers = []
    for capability in Capability:
        needed = _listed(name for name, needs in needs_by_objective().items() if capability in needs)
        always = _listed(name for name, model in models.items() if capability in model.always_offers)
        if needed:
            offers.append(f"| {capability} | {needed} | {WHERE.get(capability, always)} |")
    return "\n".join([*INTRODUCTION, "| refused | instead |", "| --- | --- |", *table, *OFFERS, *offers, ""])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
