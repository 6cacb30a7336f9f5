"""A Pyro model and guide as they are, with what the package asks of a model."""

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import ref

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyrolatent.declaration import component, imported
from pyrolatent.errors import InputError
from pyrolatent.models.arrays import as_labels, as_numbers
from pyrolatent.models.components.conditional import filled, masked
from pyrolatent.models.components.distributions import Reshaped, innermost
from pyrolatent.models.components.scaling import Unscaled
from pyrolatent.models.isolation import evaluating_alone, held_parameters_expected, own_parameters
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.model import Capability, Model
from pyrolatent.models.plates import Counted, Given
from pyrolatent.models.programs.arguments import by_function, by_signature, differ
from pyrolatent.models.programs.first_run import ROWS, FirstRun, fault, first_run, named, observing, owners

Inputs = tuple[Tensor, Tensor | None, Tensor | None]
MEAN_OF = 100
"""Draws of sites outside the plate that their means are taken of."""


def from_pyro(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    observed: str | Mapping[str, str] | None = None,
    plate: str | None = None,
    arguments: Callable[[Tensor, Tensor | None, Tensor | None], Any] | None = None,
) -> "PyroPair":
    """A Pyro model and guide, unmodified, as a model that can be fitted, evaluated, checked and saved.

    Args:
        model: generative function, method or module, all of whose sites lie in one plate over datapoints.
        guide: function of the same arguments that samples the latent sites of the model.
        observed: the site that observes x, by default the only observed one; where the model observes the labels too,
            a mapping such as {"obs": "x", "labels": "y"}.
        plate: name of the plate over datapoints, by default the one that all sites share.
        arguments: what both are called with: a function of x (batch, *event_shape), y and mask, the last two None where
            the data have none, to one argument, a tuple of them, or a mapping of names to them. By default x is given
            to the first parameter of the model, y to `y`, `ys`, `label` or `labels`, the mask to `mask` or `obs_mask`.

    Returns:
        The model. The pair is run on a few datapoints when it first meets data; what it then asks of Pyro is what
        is trained.

    Raises:
        InputError: what is no program, or parameters of it that no default says how to fill.
    """
    roles = dict(observed) if isinstance(observed, Mapping) else observed
    return PyroPair(None, model=model, guide=guide, observed=roles, plate=plate, arguments=arguments)


@component("pyro", "model")
class PyroPair(LatentVariableModel):
    """A Pyro model and guide that exist already; in Python `from_pyro` makes it.

    Trained are the parameters that `pyro.infer.SVI` would train: those that the pair meets through `pyro.param`,
    `pyro.module` and `PyroModule` when it first runs. Their tensors are those of the modules, and of Pyro's parameter
    store where the pair was given as objects, so that what SVI has trained is trained further, and the other way
    round. Modules that the pair uses without naming them to Pyro are saved with the rest and stay as they are.

    Args:
        event_shape: shape of one datapoint x; None: the first data say it.
        label_dim: number of classes or width of the labels of the data, 0 for none.
        model: generative function, or its import path: `my_module:model`, `my_module:instance.model`.
        guide: guide, or its import path.
        observed: the site that observes x, or a mapping of observed sites to `x` and `y`.
        plate: name of the plate over datapoints.
        arguments: function of x, y and mask to the arguments of both programs, or its import path.
        model_options: what `model`, a class or a function that makes the program, is called with.
        guide_options: the same of `guide`.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | None,
        label_dim: int = 0,
        *,
        model: str | Callable[..., Any],
        guide: str | Callable[..., Any],
        observed: str | dict[str, str] | None = None,
        plate: str | None = None,
        arguments: str | Callable[..., Any] | None = None,
        model_options: dict[str, Any] | None = None,
        guide_options: dict[str, Any] | None = None,
    ) -> None:
        Model.__init__(self, event_shape or ())
        self.scaling, self.missingness = Unscaled(()), None
        self.label_dim, self.plate = label_dim, plate
        made = _Made()
        self._programs = _program("model", model, model_options, made), _program("guide", guide, guide_options, made)
        self._in_store = not isinstance(model, str) and not isinstance(guide, str)
        arguments = imported(arguments, made.modules) if isinstance(arguments, str) else arguments
        self._arguments = by_signature(self._programs[0]) if arguments is None else by_function(arguments)
        self._declared = _roles(observed)
        self._run: FirstRun | None = None
        self._fault: str | None = None
        self._takes_mask = False
        self._given: dict[str, Tensor] = {}
        self._counted = 1.0
        self._rows: Tensor | None = None
        self._sees_gaps = False
        self._waiting: Mapping[str, Any] | None = None
        self._store: dict[str, dict[str, Any]] = {"params": {}, "constraints": {}}
        self.modules_met = nn.ModuleDict(named(owners(*self._programs)))
        self.parameters_met = nn.ParameterDict()
        self.about: Tensor
        self.unlike_x: Tensor
        self.register_buffer("about", torch.tensor([label_dim, False, False, *self.event_shape]))
        self.register_buffer("unlike_x", _bytes(None))

    @property
    def met(self) -> bool:  # type: ignore[override]
        """Whether the pair has been run."""
        return self._run is not None

    @property
    def likelihood_name(self) -> str:
        """The distribution of x, or the sites that are observed."""
        if self._run is None or self._fault is not None:
            return "pair's"
        return type(innermost(self._run.model_trace.nodes[self.observed_site]["fn"])).__name__

    @property
    def global_sites(self) -> list[str]:
        """Latent sites outside the plate over datapoints, unless they are held at a draw."""
        return [site for site in self._outside if site in self._run.model_trace.nodes]  # type: ignore[union-attr]

    @property
    def _outside(self) -> list[str]:
        """The same with auxiliary sites of the guide."""
        return [] if self._run is None or self._given else self._run.outside

    @property
    def encodes_datapoints(self) -> bool:
        """Whether each datapoint has latents of its own, beside those outside the plate."""
        return self._run is None or not self._run.outside or self._run.inside

    @property
    def observes_x(self) -> bool:
        """Whether one site of the model is p(x | z)."""
        return self._fault is None

    @property
    def vectorises(self) -> bool:
        """Whether the pair runs with several particles side by side."""
        return self._run is None or self._run.vectorises

    @property
    def encoders(self) -> list[nn.Module]:
        """None that the package could give a mask to: the guide takes it, or does not."""
        return []

    @property
    def scores_any_value(self) -> bool:
        """Whether the guide scores values that it did not draw: it has no auxiliary site of each datapoint."""
        return self._run is None or not self._run.auxiliary

    @property
    def offers(self) -> frozenset[Capability]:
        """As of any model; draws of its own, auxiliary ones too, are always scored."""
        return super().offers | {Capability.ANY_DRAW_SCORED}

    @property
    def sees_gaps(self) -> bool:
        """Whether the guide was trained on data with a mask, which it takes."""
        return self._sees_gaps

    @property
    def of_training_rows(self) -> bool:
        """Whether the programs take row numbers, so that they are of the training data alone."""
        return self._arguments.takes_rows

    @property
    def own_states(self) -> list[str]:
        """Latent sites of the model that the guide has not."""
        return [] if self._run is None else self._run.own_states

    def run_by_pyro(self) -> None:
        """Refuses row numbers that are not known where Pyro's tools run the pair, then as any model.

        Raises:
            InputError: the programs take row numbers, which are known in `fit` alone.
        """
        if self.of_training_rows and self._rows is None:
            raise InputError(
                "the pair's programs take row numbers, which fit knows and Pyro's tools do not; give these tools the "
                "programs themselves"
            )
        super().run_by_pyro()

    @property
    def takes_unknown_labels(self) -> bool:
        """A pair is given labels of a whole minibatch or none."""
        return False

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that Pyro's SVI would train, and no others; before the first run those that are known."""
        trained = {id(parameter) for parameter in self._store["params"].values()}
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if id(parameter) in trained or self._run is None:
                yield name, parameter

    def generate(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """The generative function; arguments as in `LatentVariableModel.generate`."""
        return self._called(0, x, y, mask)

    def infer(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """The guide; arguments as in `LatentVariableModel.infer`."""
        return self._called(1, x, y, mask)

    def _called(self, which: int, x: Tensor, y: Tensor | None, mask: Tensor | None) -> Any:
        self.meet(x, y, mask)
        gaps: Any = nullcontext()
        if mask is not None and not self._takes_mask:
            if self._fault is not None:
                raise InputError(
                    f"missing values are left out of the site of x, but {self._fault}, which would take them for "
                    "zeros; let both programs take a parameter mask and leave them out"
                )
            gaps, x = _Gaps(self.observed_site, mask), torch.where(mask, x, 0.0)
        call = self._arguments(x, y, mask, self._rows)
        outside = Given(self._given) if self._given else Counted(self._outside, self._counted)
        # The parameters are the pair's own, whatever has their names elsewhere.
        with own_parameters(self._store) as store, gaps, outside, held_parameters_expected():
            result = self._programs[which](*call.args, **call.kwargs)
            new = next((name for name in store if name not in self._store["params"]), None)
        if new is not None:
            raise InputError(
                f"the pair names the parameter {new!r} to Pyro in some runs alone, so that it would not be trained; "
                "call pyro.param and pyro.module in every run"
            )
        return result

    def warn_of_size(self, datapoints: int) -> None:
        """Warns if the likelihood is scaled up to another number of datapoints than there are to train on."""
        if self._run is None:
            return
        declared, factor, said = self._run.declared, self._run.factor, None
        if declared not in (None, datapoints):
            said = (
                f"the plate {self.plate!r} or a scale in it declares {declared} datapoints, but there are {datapoints} "
                f"to train on, so that the likelihood counts {declared}/{datapoints} times; declare len(data.train)"
            )
        elif declared is None and not math.isclose(factor, 1.0, rel_tol=1e-4):
            said = (
                f"the likelihood is scaled by {factor:.4g} in minibatches of any size, so that it counts {factor:.4g} "
                "times beside the latents outside the plate, of which each minibatch counts its share; scale it by "
                "len(data.train) / len(x), or leave the scale out"
            )
        if said is not None:
            warnings.warn(said, stacklevel=3)

    @contextmanager
    def of_rows(self, rows: Tensor, datapoints: int) -> Iterator[None]:
        """Runs the pair on a minibatch of the training data within this context, as in `Model.of_rows`.

        Terms outside the plate count by the share of the training data that the minibatch is; a plate, or a scale, that
        declares the number of all datapoints scales its own sites instead. Programs that take row numbers are given
        them.
        """
        self._rows = rows
        declared = None if self._run is None else self._run.declared
        self._counted = 1.0 if self._run is None or declared is not None else len(rows) / datapoints
        try:
            yield
        finally:
            self._rows, self._counted = None, 1.0

    @torch.no_grad()
    def global_draw(self, inputs: Inputs) -> dict[str, Tensor]:
        """One draw of the latent sites outside the plate, as in `LatentVariableModel`."""
        if not self._outside:
            return {}
        trace: Any = poutine.trace(self.infer).get_trace(*inputs)
        return {site: trace.nodes[site]["value"] for site in self._outside}

    @contextmanager
    def given(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Holds latent sites outside the plate at these values, as in `LatentVariableModel`."""
        before, self._given = self._given, self._given | values
        try:
            yield
        finally:
            self._given = before

    def meet(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, label_dim: int = 0) -> None:
        """Runs the pair on the first datapoints, if it has not been run: finds its parameters and its sites.

        Args:
            x: data (batch, *event_shape).
            y: labels (batch,) or (batch, label_dim), None for none.
            mask: True where x is observed, None if all of it is.
            label_dim: number of classes or width of the labels, of labels that are classes.

        Raises:
            InputError: a pair that does not run on this data, or whose parameters another pair has under their names.
        """
        if self._run is not None:
            self._warn_of_store()
            return
        if y is None and self.label_dim and "y" in self._declared:  # run as in training, for what is met, in its order
            none = [[0.0] * self.label_dim] if self.vector_labels else [0]
            y = as_labels(self, none * len(x), len(x))
        rows = x[:ROWS], None if y is None else y[:ROWS], None if mask is None else mask[:ROWS]
        label_dim = label_dim or self.label_dim or (y.shape[1] if y is not None and y.dim() > 1 else 0)
        self._takes_mask = self._uses(2, (*rows[:2], torch.ones_like(rows[0], dtype=torch.bool)), torch.zeros(()))
        uses_y = rows[1] is not None and self._uses(1, rows, (rows[1] + 1) % max(label_dim, 2))
        if uses_y and not label_dim:
            raise InputError(
                "classes were given to a pair that does not know how many there are; fit or evaluate it with the data "
                "of pl.load_data first"
            )
        observes_y = "y" in self._declared and uses_y
        runs = [first_run(*self._programs, self._arguments, (x, y, mask), self.plate)]
        if observes_y:  # without labels, in evaluation, other networks may be met
            runs.append(first_run(*self._programs, self._arguments, (x, None, mask), self.plate))
        if not any(run.model_trace.stochastic_nodes for run in runs):
            raise InputError("the model samples no latent site; a pair is of a latent-variable model")
        run, roles = runs[0], observing(runs[0], self._declared)
        self._hold(runs)
        self._run = run
        self.plate = self.plate or run.plate
        self.event_shape, self.label_dim = x.shape[1:], label_dim if uses_y else 0
        self.label_site, self.conditional = roles.get("y"), uses_y and not observes_y
        self.observed_site = roles.get("x", "")
        self._fault = fault(run, roles, rows[0])
        self._sees_gaps = mask is not None and self._takes_mask
        known = torch.tensor([self.label_dim, self.conditional, self._sees_gaps, *self.event_shape])
        self.about, self.unlike_x = known.to(self.about.device), _bytes(self._fault).to(self.about.device)
        if self._waiting is not None:
            self._take_waiting()

    def _take_waiting(self) -> None:
        """Takes the state that was loaded before the first run, which may have been of no data."""
        waiting: Any = self._waiting
        self._waiting = None
        self.unlike_x = torch.empty_like(waiting["unlike_x"], device=self.about.device)
        self.to(next((value.dtype for value in waiting.values() if value.is_floating_point()), None))
        try:
            super().load_state_dict(waiting)
        except RuntimeError as error:
            raise InputError(f"what was loaded is not of this pair: {' '.join(str(error).split())}") from error
        self._sees_gaps, self._fault = bool(self.about[2]), bytes(self.unlike_x.tolist()).decode() or None

    def _uses(self, which: int, rows: tuple[Any, Any, Any], other: Tensor) -> bool:
        """Whether what the programs are called with changes with the labels (1) or the mask (2)."""
        changed = [*rows]
        changed[which] = other.expand_as(rows[which]).to(rows[which])
        calls = []
        with torch.random.fork_rng(devices=[rows[0].device] if rows[0].is_cuda else []):
            for given in (rows, changed):
                torch.manual_seed(0)  # arguments that are drawn, as binarised images are, differ by what is given alone
                calls.append(self._arguments(*given))
        return differ(*calls)

    def _hold(self, runs: list[FirstRun]) -> None:
        """Makes the parameters and modules of first runs parts of this module."""
        self.modules_met = nn.ModuleDict(named([module for run in runs for module in run.modules]))
        in_modules = {id(parameter) for parameter in self.modules_met.parameters()}
        shared = pyro.get_param_store()
        there = dict(shared.named_parameters()) if self._in_store else {}
        own: Any = {"params": {}, "constraints": {}}
        for name, (tensor, constraint) in {k: v for run in reversed(runs) for k, v in run.parameters.items()}.items():
            if name in there and id(tensor) in in_modules and there[name] is not tensor:
                raise InputError(
                    f"Pyro's parameter store holds {name!r} of another module than the pair's; call "
                    "pyro.clear_param_store() to go on with the module as it is, or "
                    "pyro.module(..., update_module_params=True) to give it what is in the store"
                )
            if name in there and id(tensor) not in in_modules:
                self._may_take(name, there[name], tensor)
                tensor = there[name]
            self._store["params"][name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())
            self._store["constraints"][name] = constraint
            if id(tensor) not in in_modules:
                self.parameters_met[name.replace(".", "/")] = self._store["params"][name]
                for what, part in own.items():
                    part[name] = self._store[what][name]
        if self._in_store:
            shared.set_state(own)
            _owners.update({parameter: ref(self) for parameter in own["params"].values()})

    def _warn_of_store(self) -> None:
        """Says once that Pyro's store was given other parameters since the first run, as by `load` and `set_state`."""
        if not self._in_store:
            return
        there, own = pyro.get_param_store()._params, self._store["params"]
        other = [name for name in own if name in there and there[name] is not own[name] and there[name] not in _owners]
        _owners.update({there[name]: ref(self) for name in other})
        if other:
            warnings.warn(
                f"Pyro's parameter store was given another {', '.join(other[:3])} since this pair first ran, which "
                "keeps its own parameters; make the pair anew with from_pyro to take those of the store",
                stacklevel=3,
            )

    def _may_take(self, name: str, there: Tensor, own: Tensor) -> None:
        """Refuses a parameter of Pyro's store that another pair has, or that has another shape."""
        owner = _owners.get(there, lambda: None)()
        if there.shape != own.shape or (owner is not None and owner._programs != self._programs):
            what = f"of the shape {tuple(there.shape)}" if there.shape != own.shape else "of another pair"
            raise InputError(
                f"Pyro's parameter store holds a parameter {name!r} {what}; call pyro.clear_param_store() before this "
                "pair meets data, or give its parameter another name"
            )

    def given_label(self, y: Tensor | None) -> dict[str, Tensor]:
        """What the site of the labels observes where these are given, of a model that observes them, else nothing."""
        if y is None or self.label_site is None:
            return {}
        x = as_numbers(self, torch.zeros(()), "x").expand(len(y), *self.event_shape)
        trace: Any = poutine.trace(self.generate).get_trace(x, y)
        return {self.label_site: trace.nodes[self.label_site]["value"]}

    def simulated(self, size: int, y: Tensor | None = None) -> dict[str, Any]:
        """Draws z ~ p(z), x ~ p(x | z), as of any model; labels that the model observes are drawn or those given.

        Sites outside the plate are drawn from the guide, anew for each datapoint.
        """
        self._meet_nothing(y)
        if not self.global_sites:
            return super().simulated(size, y)
        parts = list(self._each(LatentVariableModel.simulated, size, y))
        return {
            site: {**node, "value": torch.cat([part[site]["value"] for part in parts])}
            for site, node in parts[0].items()
        }

    def expected(self, size: int, y: Tensor | None = None) -> Tensor:
        """E[x | z, u] at draws of z ~ p(z | u) and of sites u outside the plate, as `simulated` draws them."""
        self._meet_nothing(y)
        if not self.global_sites:
            return super().expected(size, y)
        return torch.cat(list(self._each(LatentVariableModel.expected, size, y)))

    def _each(self, of_one: Callable[..., Any], size: int, y: Tensor | None) -> Iterator[Any]:
        """What a method gives for one datapoint, at each of some draws of the sites outside the plate."""
        x = as_numbers(self, torch.zeros(()), "x").expand(1, *self.event_shape)
        for row in range(size):
            label = None if y is None else y[row : row + 1]
            with self.given(self.global_draw((x, label, None))):
                yield of_one(self, 1, label)

    def _meet_nothing(self, y: Tensor | None) -> None:
        """Runs a pair that was loaded on no data, if it has not been run, and requires the site of x."""
        if self._run is None and self._waiting is None:
            raise InputError("the pair has not seen any data; fit or evaluate it, or load a run of it, first")
        x, placeholder, _ = self._nothing()
        self.meet(x, placeholder if y is None else y[:1].expand(ROWS, *y.shape[1:]))
        self.require_x()

    def _nothing(self) -> Inputs:
        """Datapoints and, where they are needed, labels of zeros."""
        x = as_numbers(self, torch.zeros(()), "x").expand(ROWS, *self.event_shape)
        none = [[0.0] * self.label_dim if self.vector_labels else 0] * ROWS
        return x, as_labels(self, none, ROWS) if self.conditional else None, None

    def decode(self, latents: Any, y: Any = None) -> TorchDistributionMixin:
        """The likelihood p(x | latents), as of any model.

        Sites outside the plate may be among the latents, of their own shapes; those that are not are at their means
        under the guide, averaged over 100 draws, the same in every call.

        Raises:
            InputError: as of any model, or such a mean is no value of the site, as of categories and correlations.
        """
        self._meet_nothing(None)
        if not self.global_sites:
            return super().decode(latents, y)
        given = latents if isinstance(latents, Mapping) else {}
        own = {site: value for site, value in given.items() if site not in self.global_sites} if given else latents
        nodes, outside = self._run.model_trace.nodes, {}  # type: ignore[union-attr]
        for site in [site for site in self.global_sites if site in given]:
            like = nodes[site]["value"]
            outside[site] = as_numbers(self, given[site], site)
            if outside[site].shape != like.shape:
                raise InputError(
                    f"{site} has shape {tuple(outside[site].shape)}, but it is common to all datapoints, of shape "
                    f"{tuple(like.shape)}"
                )
            outside[site] = outside[site] if like.is_floating_point() else outside[site].to(like.dtype)
        missing = [site for site in self.global_sites if site not in outside]
        means = self._global_means(missing) if missing else {}
        with self.given(means | outside):
            return super().decode(own, y)

    @torch.no_grad()
    def _global_means(self, sites: list[str]) -> dict[str, Tensor]:
        """The means of sites outside the plate under the guide."""
        inputs = self._nothing()
        with evaluating_alone(self), torch.random.fork_rng(devices=[inputs[0].device] if inputs[0].is_cuda else []):
            torch.manual_seed(0)
            draws = [self.global_draw(inputs) for _ in range(MEAN_OF)]
        nodes = self._run.model_trace.nodes  # type: ignore[union-attr]
        # In double precision, where rounding takes no mean out of a simplex.
        means = {site: torch.stack([draw[site] for draw in draws]).double().mean(0) for site in sites}
        supports = {site: nodes[site]["fn"].support for site in sites}
        unfit = [site for site in sites if supports[site].is_discrete or not supports[site].check(means[site]).all()]
        if unfit:
            given = ", ".join(f"{site!r}: ..." for site in unfit)
            raise InputError(
                f"the mean of {' and '.join(map(repr, unfit))} under the guide is no value that the site can have; "
                f"give one among the latents, as {{{given}}}"
            )
        return {site: mean.to(draws[0][site].dtype) for site, mean in means.items()}

    def observation(self, trace: Any) -> Any:
        """The site of x in a trace of the generative function, in the shape of x.

        Raises:
            InputError: no site observes x as it is.
        """
        node = trace.nodes[self.require_x()]
        fn = node["fn"]
        if fn.event_shape == self.event_shape:
            return node
        value = node["value"].reshape(*fn.batch_shape, *self.event_shape)
        return {**node, "fn": Reshaped(fn, self.event_shape), "value": value}

    def require_x(self) -> str:
        """The site that observes x.

        Raises:
            InputError: none does.
        """
        if self._fault is not None:
            raise InputError(f"the pair is asked for x alone, but {self._fault}")
        return self.observed_site

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes a state; a pair that has not been run takes it when it is."""
        if self._run is not None:
            return super().load_state_dict(state_dict, strict, assign)
        if not {"about", "unlike_x"} <= state_dict.keys():
            raise RuntimeError("it is no state of a Pyro pair")
        self._waiting, self.fitted = state_dict, True
        self.label_dim, conditional, _, *event_shape = state_dict["about"].tolist()
        self.event_shape, self.conditional = torch.Size(event_shape), bool(conditional)
        return None

    def __str__(self) -> str:
        if self._run is None:
            return f"{type(self).__name__} that has not seen any data"
        return "\n  ".join([Model.__str__(self), *self._run.factors])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise InputError("a Pyro pair is not copied, since its programs would go on with the modules that they name")


class _Gaps(Messenger):
    """Leaves missing values out of the likelihood of a program that is not given the mask.

    Args:
        site: that observes x.
        mask: True where x is observed (batch, *event_shape).
    """

    def __init__(self, site: str, mask: Tensor) -> None:
        super().__init__()
        self.site = site
        self.mask = mask

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and msg["is_observed"]:
            mask = self.mask.reshape(len(self.mask), *msg["fn"].event_shape)
            msg["value"] = filled(msg["value"], mask, msg["fn"].support)
            msg["fn"] = masked(msg["fn"], mask)


class _Made:
    """What the import paths of one pair name, and what was built of it.

    Modules are run anew for each pair, so that it shares no networks and its seed decides their initial weights.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Any] = {}
        self.objects: dict[str, Any] = {}


def _program(which: str, program: Any, options: Mapping[str, Any] | None, made: _Made) -> Any:
    """A program that was given, or that an import path names.

    Args:
        which: "model" or "guide", for messages.
        program: the program, or its import path; a class that it begins with, or a function where there are options,
            is called first.
        options: what is called with.
        made: what was made already, so that two methods are those of one object.

    Raises:
        InputError: it is no program.
    """
    if isinstance(program, str):
        module, _, names = program.partition(":")
        first, *attributes = names.split(".")
        path = f"{module}:{first}"
        if path not in made.objects:
            found = imported(path, made.modules)
            made.objects[path] = found(**(options or {})) if isinstance(found, type) or options is not None else found
        program = operator.attrgetter(".".join(attributes))(made.objects[path]) if attributes else made.objects[path]
    elif options is not None:
        raise InputError(f"{which}_options are for a declaration by import path; call the program with them yourself")
    if not callable(program):
        raise InputError(f"{which} was {program!r}; give a function, a method or a module")
    return program


def _roles(observed: str | Mapping[str, str] | None) -> dict[str, str]:
    """The sites by what they observe, `x` or `y`."""
    given = {observed: "x"} if isinstance(observed, str) else dict(observed or {})
    if sorted(given.values()) not in ([], ["x"], ["x", "y"]):
        raise InputError(
            f'observed was {observed!r}; give the site of x, or the sites of both: {{"obs": "x", "labels": "y"}}'
        )
    return {role: site for site, role in given.items()}


def _bytes(text: str | None) -> Tensor:
    return torch.tensor(list((text or "").encode()), dtype=torch.uint8)


_owners = WeakTensorKeyDictionary()
"""The pairs that have taken parameters of Pyro's store, or put them there."""
