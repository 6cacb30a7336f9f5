"""What goes with what: every declaration that cannot be right is refused here, before any training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pyro.distributions import Unit, constraints
from torch import nn

from pyrolatent.data import Batch, Data, Split
from pyrolatent.declaration import registered
from pyrolatent.errors import InputError
from pyrolatent.inference.contrastive import EnergyObjective, ExactLikelihood
from pyrolatent.inference.local import Local, encoded
from pyrolatent.inference.modes import evaluating
from pyrolatent.inference.objectives import EM, ClosedForm, Objective, SquaredError
from pyrolatent.inference.score_matching import ScoreMatching
from pyrolatent.inference.weights import Weights, arguments, training_arguments, weigh
from pyrolatent.models.arrays import as_labels, hold_to_divisor, place_of
from pyrolatent.models.autoencoder import DeterministicModel
from pyrolatent.models.latent import LatentVariableModel, observed_node
from pyrolatent.models.unnormalised import UnnormalisedDensity


@dataclass(frozen=True)
class Case:
    """What is to be judged: a model, the data and the objective."""

    model: Any
    data: Data
    objective: Any

    @cached_property
    def weights(self) -> Weights:
        """The model's draws for one datapoint."""
        with torch.no_grad(), evaluating(self.model):
            one = self.data.train.to(*place_of(self.model)).batch(slice(0, 1))
            return weigh(self.model.generate, self.model.infer, *training_arguments(self.model, one))

    @property
    def has_density(self) -> bool:
        """Whether the model is one of p(x)."""
        return not isinstance(self.model, DeterministicModel)

    @property
    def has_posterior(self) -> bool:
        """Whether the model has latents and a guide, which alone give a bound."""
        return has_posterior(self.model)


class Rule(NamedTuple):
    """One thing that cannot be right.

    Attributes:
        refuses: what is refused.
        instead: what to declare instead.
        broken: gives the message where the rule is broken, else None; it may also raise the error itself.
    """

    refuses: str
    instead: str
    broken: Callable[[Case], str | None]


def hold_to_rules(model: Any, data: Data, objective: Any) -> None:
    """Refuses a combination that cannot be right.

    Raises:
        InputError: naming both sides and what to declare.
    """
    same_event_shape(model, data)
    case = Case(model, data, objective)
    for rule in RULES:
        message = rule.broken(case)
        if message:
            raise InputError(f"{message}; {rule.instead}")


def require_data(data: Any) -> None:
    """Refuses an array where data with its splits is asked for.

    Raises:
        InputError: it is no `Data`.
    """
    if not isinstance(data, Data):
        raise InputError(f"data is a {type(data).__name__}; give pl.load_data(x), which splits it and keeps its labels")


def same_event_shape(model: LatentVariableModel | UnnormalisedDensity, data: Data) -> None:
    """Refuses what is no `Data`, and data of another event shape than the model's or in other units."""
    require_data(data)
    if model.event_shape != torch.Size(data.event_shape):
        raise InputError(
            f"the model is over events of shape {tuple(model.event_shape)}, but {data.name} holds {data.event_shape}; "
            "build the model for data.event_shape"
        )
    if data.divisor == 1:
        hold_to_divisor(model, data.test.x)


def require_one_observed_site(model: LatentVariableModel, one: Batch) -> None:
    """Refuses a model that observes more than x, where x alone is simulated.

    Raises:
        InputError: naming the other site.
    """
    with torch.no_grad(), evaluating(model):
        trace: Any = weigh(model.generate, model.infer, *arguments(model, one)).model_trace
    for site in trace.observation_nodes:
        node = trace.nodes[site]
        if site != "x" and not isinstance(node["fn"], Unit) and not node["infer"].get("_deterministic"):
            raise InputError(
                f"a model is checked by simulating x, but {type(model).__name__} observes {site!r} beside it; make "
                "both one site, or check the part of the model that observes x"
            )


def require_latents(model: Any) -> None:
    """Refuses an unnormalised density where latents are asked for.

    Raises:
        InputError: it is one.
    """
    if isinstance(model, UnnormalisedDensity):
        raise InputError(f"{type(model).__name__} has no posterior of latents, from which this is made; fit a vae")


def part_for(model: LatentVariableModel, data: Data, split: str) -> Split:
    """A split of the data for a model of latents to score, where the model is.

    Args:
        model: the model.
        data: what `load_data` gives.
        split: "train", "validation" or "test".

    Raises:
        InputError: a model without latents, what is no `Data`, no such split, or data whose events or labels are not
            the model's.
    """
    require_latents(model)
    require_data(data)
    if split not in ("train", "validation", "test"):
        raise InputError(f"there is no split {split!r}; valid: train, validation, test")
    same_event_shape(model, data)
    part: Split = getattr(data, split).to(*place_of(model))
    if model.conditional and part.y is None:
        raise InputError(f"{type(model).__name__} is a model of x given y, but {data.name} has no labels; give some")
    if model.label_dim and part.y is not None:
        as_labels(model, part.y, len(part), known=model.conditional)
    return part


def has_posterior(model: Any) -> bool:
    """Whether a model has latents and a guide, which alone give a bound."""
    return not isinstance(model, DeterministicModel | UnnormalisedDensity)


def domain(support: Any) -> str:
    """The set that a constraint describes, up to a boundary of measure zero."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.positive) | type(constraints.nonnegative)) and support.lower_bound == 0:
        return "positive numbers"
    names = {"Real()": "real numbers", "Boolean()": "{0, 1}", "OneHot()": "one-hot vectors", "Simplex()": "the simplex"}
    if str(support) in ("RealVector()", "Interval(lower_bound=0.0, upper_bound=1.0)"):
        return "real numbers" if "Real" in str(support) else "numbers in [0, 1]"
    return names.get(str(support), str(support))


def declared_name(part: Any) -> str:
    """The name by which a part is declared, or that of its class."""
    declared = getattr(part, "declaration", type(getattr(part, "elbo", part)).__name__)
    return declared if isinstance(declared, str) else next(iter(declared))


def likelihood_name(model: LatentVariableModel) -> str:
    """The name by which a model's likelihood is declared."""
    return declared_name(getattr(model.likelihood, "family", model.likelihood))


def _solution(case: Case) -> str | None:
    for objective, method in ((ClosedForm, "solve"), (EM, "em_step")):
        if isinstance(case.objective, objective) and not hasattr(case.model, method):
            return f"{type(case.model).__name__} has no {declared_name(case.objective)} solution"
    return None


def _complete_data(case: Case) -> str | None:
    if isinstance(case.objective, ClosedForm) and case.data.train.mask is not None:
        return f"closed_form is a solution for complete data, but {case.data.name} has a mask"
    return None


def _no_density(case: Case) -> str | None:
    if not case.has_density and not isinstance(case.objective, SquaredError | ClosedForm):
        return f"{type(case.model).__name__} has no density, so {declared_name(case.objective)} is not defined for it"
    return None


def _density(case: Case) -> str | None:
    if case.has_posterior and isinstance(case.objective, SquaredError):
        return f"{type(case.model).__name__} has a density and is trained by a bound on it, not by squared_error"
    return None


def _energy(case: Case) -> str | None:
    of_energies = isinstance(case.objective, EnergyObjective)
    if isinstance(case.model, UnnormalisedDensity) != of_energies:
        a, b = (
            ("has no energy", "is of one") if of_energies else ("has an energy and no posterior", "is not of energies")
        )
        return f"{type(case.model).__name__} {a}, but {declared_name(case.objective)} {b}"
    return None


def _energy_data(case: Case) -> str | None:
    if not isinstance(case.model, UnnormalisedDensity):
        return None
    name = declared_name(case.model)
    if case.data.train.mask is not None:
        return f"{name} is trained on complete data, but {case.data.name} has a mask"
    if case.data.binarize == "relaxed":
        return f"{name} is a density of x, not a cross-entropy, but {case.data.name} is declared binarize: relaxed"
    case.data.check_support(case.model.support, name)
    return None


def _tractable(case: Case) -> str | None:
    if isinstance(case.objective, ExactLikelihood) and not case.model.tractable:
        return f"log Z of {declared_name(case.model)} is a sum over too many states for exact_likelihood"
    return None


def _discrete(case: Case) -> str | None:
    if isinstance(case.objective, ScoreMatching) and case.model.levels is not None:
        return f"{declared_name(case.objective)} needs the gradient of log p in x, but x is discrete"
    return None


def _smooth(case: Case) -> str | None:
    real = isinstance(case.model, UnnormalisedDensity) and case.model.levels is None
    if real and any(isinstance(module, nn.ReLU) for module in case.model.modules()):
        return "score matching, by which energies over real numbers are scored, sees no curvature of rectifiers"
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
    y = case.data.train.y
    if case.model.conditional and y is not None and not y.is_floating_point():
        unknown = int((y < 0).sum())
        if unknown:
            return f"{type(case.model).__name__} is a model of x given y, but {unknown:,} training labels are unknown"
    return None


def _parameters(case: Case) -> str | None:
    if not case.has_posterior:
        return None
    own = {id(parameter) for parameter in case.model.parameters()}
    for trace in (case.weights.guide_trace, case.weights.model_trace):
        for name in trace.param_nodes:
            value = trace.nodes[name]["value"]
            if id(value) not in own and id(getattr(value, "unconstrained", lambda: None)()) not in own:
                return f"{type(case.model).__name__} uses pyro.param({name!r}), which fit neither trains nor saves"
    return None


def _observed_site(case: Case) -> str | None:
    if case.has_posterior:
        observed_node(case.weights.model_trace)
    return None


def _support(case: Case) -> str | None:
    if not case.has_posterior:
        return None
    case.data.check_support(
        observed_node(case.weights.model_trace)["fn"].support,
        f"the {declared_name(getattr(case.model.likelihood, 'family', case.model.likelihood))} likelihood",
    )
    return None


def _latent_supports(case: Case) -> str | None:
    if not case.has_posterior:
        return None
    for site in case.weights.latents:
        prior, posterior = (
            domain(trace.nodes[site]["fn"].support) for trace in (case.weights.model_trace, case.weights.guide_trace)
        )
        if prior != posterior:
            return f"the prior of {site} is over {prior}, but its posterior is over {posterior}"
    return None


def _pathwise(case: Case) -> str | None:
    if not case.has_posterior or not getattr(case.objective, "pathwise", False):
        return None
    for site in case.weights.without_path:
        return (
            f"{declared_name(case.objective)} needs gradients through the draws of {site}, but its posterior "
            "has none: it is discrete or not reparameterised"
        )
    return None


def _training_term(case: Case) -> str | None:
    method = getattr(type(case.model), "training_term", LatentVariableModel.training_term)
    if method is not LatentVariableModel.training_term and not isinstance(case.objective, Objective):
        objective = declared_name(case.objective)
        return f"{type(case.model).__name__} adds a term to the bound, which Pyro's {objective} leaves out"
    return None


def _local(case: Case) -> str | None:
    if case.has_posterior and isinstance(case.objective, Local):
        with torch.no_grad(), evaluating(case.model):
            one = case.data.train.to(*place_of(case.model)).batch(slice(0, 1))
            try:
                encoded(case.model, training_arguments(case.model, one))
            except InputError as error:
                return str(error)
    return None


def _scoring_again(case: Case) -> str | None:
    if not case.has_posterior:
        return None
    if getattr(case.objective, "scores_again", False) and not case.model.scores_any_value:
        posterior = case.model.posterior.family
        return (
            f"{declared_name(case.objective)} scores the draws of the posterior again, which "
            f"{declared_name(posterior)} cannot: its inverse has no closed form"
        )
    return None


def _objectives(belongs: Callable[[Any], bool], *also: str) -> str:
    """The names of the objectives of a kind, and others, as `a, b or c`."""
    *names, last = [*(name for name, entry in registered("objective").items() if belongs(entry.target)), *also]
    return f"{', '.join(names)} or {last}" if names else last


def _is_energy_objective(target: Any) -> bool:
    return issubclass(target, EnergyObjective)


_WITHOUT_PATHS = _objectives(lambda target: issubclass(target, Objective) and not target.pathwise, "TraceGraph_ELBO")
_SCORES_AGAIN = _objectives(lambda target: issubclass(target, Objective) and target.scores_again)

RULES = (
    Rule(
        "closed_form or em for a model that has none",
        "declare another objective",
        _solution,
    ),
    Rule(
        "closed_form on data with missing values",
        "declare objective: em where the model has it, or elbo",
        _complete_data,
    ),
    Rule(
        "a bound on log p(x) for a model without a density",
        "declare objective: squared_error, or closed_form where the model has it",
        _no_density,
    ),
    Rule(
        "squared_error for a model with a density",
        "declare objective: elbo, or model: autoencoder",
        _density,
    ),
    Rule(
        "an objective of energies for a model without one, or any other for an energy",
        f"declare objective: {_objectives(_is_energy_objective)} for energies, elbo for latent-variable models",
        _energy,
    ),
    Rule(
        "an energy over data outside its support, with missing values or of grey values in a cross-entropy",
        "declare other visible units, or how the data are binarized",
        _energy_data,
    ),
    Rule(
        "exact_likelihood where log Z cannot be summed",
        "declare objective: pcd or cd",
        _tractable,
    ),
    Rule(
        "score matching over discrete x",
        "declare objective: pcd or cd",
        _discrete,
    ),
    Rule(
        "an energy of rectifiers over real numbers",
        "declare a smooth activation, as energy: {mlp: {activation: silu}} does",
        _smooth,
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
        "a model of x given y where labels are unknown",
        "declare semi_supervised_vae, or give all labels",
        _unknown_labels,
    ),
    Rule(
        "a model whose functions use pyro.param",
        "make it a torch.nn.Parameter of the model, or train model.model and model.guide with Pyro's SVI",
        _parameters,
    ),
    Rule(
        "a model without an observed site `x`",
        "name the site of the data x",
        _observed_site,
    ),
    Rule(
        "data outside the likelihood's support, as grey values under an exactly discrete likelihood; `binarize: "
        "relaxed` goes with bernoulli alone, as a cross-entropy",
        "declare another likelihood, or how the data are binarized or dequantized",
        _support,
    ),
    Rule(
        "a prior and a posterior over different sets",
        "declare families over the same set, or map the posterior onto the prior's with posterior: mapped",
        _latent_supports,
    ),
    Rule(
        "an objective that needs pathwise gradients with a posterior that has none",
        f"declare objective: {_WITHOUT_PATHS}, a relaxed posterior, or estimator: enumerate",
        _pathwise,
    ),
    Rule(
        f"an objective that scores draws again ({_SCORES_AGAIN}) with a posterior that cannot (planar)",
        "declare objective: iwae or elbo, or posterior: iaf, coupling or spline",
        _scoring_again,
    ),
    Rule(
        "local with a posterior that is no network and family (exact, the prior itself, a ladder's)",
        "declare objective: elbo, or for hierarchical_vae inference: bottom_up",
        _local,
    ),
    Rule(
        "a model with a training term of its own under an objective of Pyro's",
        "declare objective: elbo or analytic_elbo",
        _training_term,
    ),
)
"""The rules, in the order in which they are looked at."""

BUILT_INTO_PARTS = (
    (
        "prior vamp with a posterior that cannot score what it did not draw (planar), or that takes labels",
        "another prior or posterior",
    ),
    ("prior label_normal or conditional_vae without labels", "labelled data"),
    ("a flow over one dimension (but planar)", "a larger latent_dim, or a family"),
    ("a mask under a likelihood whose elements are not independent", "a likelihood that factorises"),
    ("a network whose input or output has another shape than the distributions need", "both shapes are said"),
)
"""What the parts themselves refuse when they are built."""

INTRODUCTION = (
    "# What goes with what",
    "",
    "A declaration that cannot be right is refused before any training, naming both sides. The rules stand in",
    "`pyrolatent/inference/rules.py`, which writes this page:",
    "",
    "    python -c \"from pyrolatent.inference import rules; print(rules.page(), end='')\" > docs/rules.md",
    "",
)


def page() -> str:
    """The page of the documentation that lists the rules, in Markdown."""
    rows = [(rule.refuses, rule.instead) for rule in RULES] + list(BUILT_INTO_PARTS)
    table = [f"| {refuses} | {instead} |" for refuses, instead in rows]
    return "\n".join([*INTRODUCTION, "| refused | instead |", "| --- | --- |", *table, ""])
