"""The first run of a Pyro pair: what it names to Pyro is what is trained, and what it observes is what it is of."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine, validation_enabled
from pyro.distributions import Unit
from pyro.infer.autoguide import AutoGuide
from pyro.infer.inspect import get_dependencies
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrolatent.errors import InputError
from pyrolatent.models.components.distributions import innermost
from pyrolatent.models.isolation import alone, own_parameters, statistics_held
from pyrolatent.models.latent import Unconditioned, only_records
from pyrolatent.models.plates import ParticlePlate, lies_in
from pyrolatent.models.programs.arguments import INSTEAD, Arguments, Call

Program = Callable[..., Any]
Rows = tuple[Tensor, Any, Any]
ROWS = 3
"""Datapoints of the first run, which is made with another number too, for what belongs to the rows of a minibatch."""


@dataclass(frozen=True)
class FirstRun:
    """What runs of a pair on a few datapoints show.

    Attributes:
        parameters: those that Pyro's SVI would train, unconstrained, and their constraints, by their names in Pyro's
            parameter store.
        modules: that were used, or whose methods the programs are.
        model_trace: of the model, replayed on the guide's draws.
        factors: the factorisation of both, a line for each site.
        as_given: the observed sites whose values are x as it is.
        given_x: the sites of the model whose distributions change with x, as the number of draws of a multinomial may.
        vectorises: whether the pair runs with several particles side by side, in a plate around it.
        plate: the plate over datapoints; None if there are several of their number.
        declared: how many datapoints the plate declares that there are, beside those of the run; None if it does not.
        outside: the latent sites of the guide outside the plate.
        factor: how often the likelihood counts for once of the latents outside the plate, in batches of any size.
        inside: whether the guide has latent sites in the plate.
        auxiliary: whether the guide has sites inside it that the model does not have.
        own_states: latent sites of the model that the guide does not have.
    """

    parameters: dict[str, tuple[Tensor, Any]]
    modules: list[nn.Module]
    model_trace: Any
    factors: list[str]
    as_given: list[str]
    given_x: list[str]
    vectorises: bool
    plate: str | None
    declared: int | None
    outside: list[str]
    factor: float
    inside: bool
    auxiliary: bool
    own_states: list[str]

    @property
    def observed(self) -> list[str]:
        """The observed sites, factors and deterministic ones not among them."""
        return [site for site in self.model_trace.observation_nodes if _is_random(self.model_trace.nodes[site])]

    @property
    def scored(self) -> list[str]:
        """The observed sites and factors."""
        nodes = self.model_trace.nodes
        return [site for site in self.model_trace.observation_nodes if not only_records(nodes[site])]


def first_run(model: Program, guide: Program, arguments: Arguments, given: Rows, plate: str | None = None) -> FirstRun:
    """Runs a pair, with a parameter store of its own, leaving the random state and running statistics as they are.

    It is run on the first rows, and once on all.

    Args:
        model: generative function.
        guide: the guide.
        arguments: what both are called with.
        given: x, y and mask of some datapoints.
        plate: name of the plate over datapoints, if it is known.

    Raises:
        InputError: one of the two does not run so, or has parameters for each of the datapoints.
    """
    rows = _first(given, ROWS)
    x, call = rows[0], arguments(*rows)
    others = given if len(given[0]) > len(x) else _first(rows, len(x) - 1)
    with (
        alone(),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[x.device] if x.is_cuda else []),
        statistics_held(),
        own_parameters() as store,
    ):
        number = len(others[0])
        of_others: Any = (arguments(*others), others[0]) if number else None
        if isinstance(guide, AutoGuide):
            trace = _trace("model", model, call, x)
            with _aside(x):
                other = [_trace("model", model, *of_others)] if number else []
            over = _over_datapoints(len(x), [trace], number, other)
            _refuse_autoguide(guide, trace, over, len(x), arguments.takes_rows)
        with _recording() as used:
            guide_trace, model_trace = traces = _traces(model, guide, call, x)
        met = _parameters(*traces)
        constraints = store.get_state()["constraints"]
        if arguments.takes_rows:
            _refuse_other_rows(guide_trace, len(x))
        with _aside(x):
            again = [*_traces(model, guide, *of_others)] if number else []
        _refuse_rows(met, _parameters(*again), len(x), number)
        as_given = _observing_as_given(model_trace, rows)
        if number > len(x):
            as_given = [site for site in _observing_as_given(again[1], given) if site in as_given]
        given_x = _given_x(model, guide_trace, arguments, rows)
        over = _over_datapoints(len(x), traces, number, again)
        vectorised = {frame.name for trace in traces for frame in _frames(trace) if frame.vectorized}
        plate = plate or (next(iter(over)) if len(over) == 1 and {*over} <= vectorised else None)
        if plate is not None and plate not in vectorised:
            raise InputError(
                f"there is no plate {plate!r} over datapoints; the vectorised ones are {sorted(vectorised)}"
            )
        outside = _outside(traces, over, plate)
        if outside:
            _refuse_global_of_x(outside, _given_x(guide, guide_trace, arguments, rows))
        factors = [*_factors("p", model, model_trace, call), *_factors("q", guide, guide_trace, call, outside)]
        vectorises = _vectorises(model, guide, call, max(_depth(guide_trace), _depth(model_trace)), plate)
    used = [*owners(model, guide), *used]
    _warn_of_untrained(used, {id(parameter) for parameter in met.values()})
    parameters = {name: (tensor, constraints[name]) for name, tensor in met.items()}
    own = {*prune_subsample_sites(guide_trace).stochastic_nodes} - {*outside}
    latents = prune_subsample_sites(model_trace).stochastic_nodes
    auxiliary = not own <= {*latents}
    frame = over.get(plate or "")
    declared = frame.full_size if frame is not None and frame.full_size != frame.size else None
    scales = _likelihood_scales([model_trace, again[1]], outside) if number and outside else None
    if declared is None and scales is not None:
        declared = _size_by_scale(scales, (len(x), number))
    return FirstRun(
        parameters=parameters,
        modules=used,
        model_trace=prune_subsample_sites(model_trace),
        factors=factors,
        as_given=as_given,
        given_x=given_x,
        vectorises=vectorises,
        plate=plate,
        declared=declared,
        outside=outside,
        factor=scales[0] if scales is not None and math.isclose(*scales, rel_tol=1e-4) else 1.0,
        inside=bool(own),
        auxiliary=auxiliary,
        own_states=[site for site in latents if site not in guide_trace.nodes],
    )


def _traces(model: Program, guide: Program, call: Call, x: Tensor) -> tuple[Any, Any]:
    guide_trace = _trace("guide", guide, call, x)
    model_trace = _trace("model", poutine.replay(model, trace=guide_trace), call, x)
    if not any(frame.size in (len(x), -1) for frame in (*_frames(guide_trace), *_frames(model_trace))):
        raise InputError(
            f"no plate of the pair is over the {len(x)} datapoints that it was given; put its sites into "
            'pyro.plate("data", len(x)), and leave it to fit to choose rows'
        )
    return guide_trace, model_trace


@contextmanager
def _aside(x: Tensor) -> Iterator[None]:
    """A parameter store and a random state of its own within this context."""
    with own_parameters(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield


def _first(rows: Rows, number: int) -> Rows:
    x, y, mask = rows
    return x[:number], None if y is None else y[:number], None if mask is None else mask[:number]


def _over_datapoints(datapoints: int, traces: Iterable[Any], others: int, of_others: Iterable[Any]) -> dict[str, Any]:
    """The plates over datapoints of traces, by name: those that are as large as there are, here and in other traces."""
    sizes = {frame.name: frame.size for trace in of_others for frame in _frames(trace)}
    return {
        frame.name: frame
        for trace in traces
        for frame in _frames(prune_subsample_sites(trace))
        if frame.size == -1 or (frame.size, sizes.get(frame.name, others)) == (datapoints, others)
    }


def _outside(traces: Iterable[Any], over: Mapping[str, Any], plate: str | None) -> list[str]:
    """The latent sites of a guide that lie in no plate over datapoints.

    Args:
        traces: of the guide and of the model.
        over: the plates over datapoints.
        plate: the one of them that all other sites lie in, if there is one.

    Raises:
        InputError: it is not known, or another site lies in another plate over datapoints.
    """
    guide_trace, model_trace = (prune_subsample_sites(trace) for trace in traces)
    nodes = guide_trace.nodes
    outside = [site for site in guide_trace.stochastic_nodes if not any(lies_in(one, nodes[site]) for one in over)]
    if outside and plate is None:
        listed = ", ".join(map(repr, sorted(over))) or "none"
        raise InputError(
            f"{outside[0]!r} is common to all datapoints, but the others lie in no single vectorised plate (over "
            f"datapoints: {listed}); write `with pyro.plate(...)` of one name around them in both programs"
        )
    for trace in (guide_trace, model_trace):
        for site in [*trace.stochastic_nodes, *trace.observation_nodes]:
            other = next((one for one in over if lies_in(one, trace.nodes[site])), None)
            if plate is not None and other is not None and not lies_in(plate, trace.nodes[site]):
                raise InputError(
                    f"the site {site!r} lies in the plate {other!r}, others in {plate!r}, and both are over "
                    "datapoints; give the plate one name in model and guide"
                )
    return outside


def _refuse_global_of_x(outside: list[str], given_x: list[str]) -> None:
    """Refuses a guide that has another posterior of a global latent for each minibatch."""
    for site in outside:
        if site in given_x:
            raise InputError(
                f"the site {site!r} lies outside the plate over datapoints, but its distribution in the guide changes "
                "with x, so that it would be another one for each minibatch; put it into the plate, or let the guide "
                "draw it from parameters of its own"
            )


def _vectorises(model: Program, guide: Program, call: Call, nesting: int, plate: str | None) -> bool:
    """Whether a pair runs with particles in a plate to the left of its own."""
    try:
        with torch.no_grad(), ParticlePlate("side by side", 2, -nesting - 1, plate):
            guide_trace = poutine.trace(guide).get_trace(*call.args, **call.kwargs)
            replayed = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*call.args, **call.kwargs)
        for trace in (guide_trace, replayed):
            trace.compute_log_prob()
    except Exception:  # of the user's own code, at shapes that it was not written for
        return False
    return True


def _depth(trace: Any) -> int:
    """Number of dimensions that the plates of a trace take."""
    return max((-frame.dim for frame in _frames(trace) if frame.vectorized), default=0)


def _frames(trace: Any) -> list[Any]:
    """The plates of the sites of a trace, of unknown sizes -1."""
    return [frame for node in trace.nodes.values() if node["type"] == "sample" for frame in node["cond_indep_stack"]]


def _parameters(*traces: Any) -> dict[str, Tensor]:
    """The unconstrained parameters that Pyro's optimisers would find in these traces."""
    return {name: trace.nodes[name]["value"].unconstrained() for trace in traces for name in trace.param_nodes}


def _name(fn: Any) -> str:
    """The name of a distribution inside of those that make events of it or mask it."""
    plain = (dist.TransformedDistribution, torch.distributions.TransformedDistribution)
    while hasattr(fn, "base_dist") and (type(fn) in plain or not isinstance(fn, plain)):
        fn = fn.base_dist
    return type(fn).__name__


def _likelihood_scales(traces: Iterable[Any], outside: Collection[str]) -> list[float] | None:
    """How often the likelihood counts for once of the latents outside the plate, in each trace; None if that differs.

    Args:
        traces: of the model.
        outside: the latent sites outside the plate.
    """
    ratios = []
    for trace in traces:
        nodes = trace.nodes
        sites = [[site for site in trace.observation_nodes if _is_random(nodes[site])], outside]
        scales = [{torch.as_tensor(nodes[site]["scale"]) for site in each if site in nodes} for each in sites]
        if any(scale.numel() > 1 for each in scales for scale in each):  # a scale of each datapoint
            return None
        of_likelihood, of_outside = ({scale.item() for scale in each} for each in scales)
        if len(of_likelihood) != 1 or len(of_outside) != 1:
            return None
        ratios.append(of_likelihood.pop() / of_outside.pop())
    return ratios


def _size_by_scale(scales: Sequence[float], sizes: Sequence[int]) -> int | None:
    """The number of datapoints that a likelihood is scaled up to, as by `poutine.scale(scale=size / len(x))`."""
    first, other = (scale * size for scale, size in zip(scales, sizes, strict=True))
    return round(first) if math.isclose(first, other, rel_tol=1e-4) else None


def _is_random(node: Any) -> bool:
    """Whether a site has a distribution: it is no factor, nothing that is only recorded, and no choice of rows."""
    return not (isinstance(node["fn"], Unit) or only_records(node) or site_is_subsample(node))


def _refuse_rows(parameters: dict[str, Tensor], other: dict[str, Tensor], datapoints: int, others: int) -> None:
    """Refuses parameters that are those of the rows of one minibatch."""
    for name, value in parameters.items():
        if name in other and other[name].shape != value.shape:
            raise InputError(
                f"the parameter {name!r} has the shape {tuple(value.shape)} for {datapoints} datapoints and "
                f"{tuple(other[name].shape)} for {others}: it belongs to the rows of one minibatch, and others have "
                "none; let the guide compute it from x"
            )


def _observing_as_given(trace: Any, rows: Rows) -> list[str]:
    """The observed sites whose values are those of x, where it is observed."""
    x, _, mask = rows
    left_out = (x != x) | (False if mask is None else ~mask)
    values = {site: trace.nodes[site]["value"] for site in trace.observation_nodes}
    return [
        site
        for site, value in values.items()
        if value.numel() == x.numel() and ((value.reshape(x.shape) == x) | left_out).all()
    ]


def _given_x(program: Program, guide_trace: Any, arguments: Arguments, rows: Rows) -> list[str]:
    """Sites of a program that have other distributions, at the same latents, where x is zero."""
    program, found = Unconditioned()(poutine.replay(program, trace=guide_trace)), []
    try:
        traces: list[Any] = []
        for x in (rows[0], torch.zeros_like(rows[0])):
            call = arguments(x, *rows[1:])
            with torch.no_grad(), validation_enabled(False):
                torch.manual_seed(0)
                traces.append(poutine.trace(program).get_trace(*call.args, **call.kwargs))
        for site in traces[0].stochastic_nodes:
            if _is_random(traces[0].nodes[site]):
                value = traces[0].nodes[site]["value"]
                one, other = (trace.nodes[site]["fn"].log_prob(value) for trace in traces)
                if not torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True):
                    found.append(site)
    except Exception:  # a program of the user's that does not run on zeros
        return ["some sites"]
    return found


def _trace(which: str, program: Callable[..., Any], call: Call, x: Tensor) -> Any:
    try:
        return poutine.trace(program).get_trace(*call.args, **call.kwargs)
    except InputError:
        raise
    except Exception as error:  # of the user's own code
        raise InputError(
            f"the {which} does not run on x of shape {tuple(x.shape)}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; {INSTEAD}, or data of another shape"
        ) from error


@contextmanager
def _recording() -> Iterator[list[nn.Module]]:
    """Gives the modules that are used within this context, in their order: run, or asked for a part of theirs."""
    used: list[nn.Module] = []
    part_of = nn.Module.__getattr__

    def note(module: nn.Module, inputs: Any = ()) -> None:
        if not any(module is one for one in used):
            used.append(module)

    def noted(module: nn.Module, name: str) -> Any:  # as the methods of a module other than `forward` do
        note(module)
        return part_of(module, name)

    handle = register_module_forward_pre_hook(note)
    nn.Module.__getattr__ = noted  # type: ignore[method-assign]
    try:
        yield used
    finally:
        nn.Module.__getattr__ = part_of  # type: ignore[method-assign]
        handle.remove()


def _refuse_autoguide(guide: AutoGuide, trace: Any, over: Collection[str], datapoints: int, takes_rows: bool) -> None:
    """Refuses a guide that would make a parameter for each datapoint of one minibatch."""
    for site in prune_subsample_sites(trace).stochastic_nodes:
        for frame in trace.nodes[site]["cond_indep_stack"]:
            shape = trace.nodes[site]["fn"].batch_shape
            if takes_rows and frame.full_size not in (None, frame.size):
                continue  # one for each row of the training data
            in_rows = frame.vectorized and frame.name in over
            if in_rows and len(shape) >= -frame.dim and shape[frame.dim] == datapoints:
                raise InputError(
                    f"{type(guide).__name__} would have parameters of {site!r} for each row of one minibatch, in the "
                    f"plate {frame.name!r}, and none for other rows; write a guide that sees x, or let the "
                    "programs take row numbers and the plate declare its full size, as pyro.plate(name, size, "
                    "subsample=rows)"
                )


def _refuse_other_rows(guide_trace: Any, datapoints: int) -> None:
    """Refuses a guide that chooses the rows of its plate itself where the programs are given them."""
    for frame in _frames(guide_trace):
        node = guide_trace.nodes.get(frame.name)
        if node is None or frame.size != datapoints or frame.full_size in (None, frame.size):
            continue
        if not torch.equal(node["value"].cpu(), torch.arange(datapoints)):
            raise InputError(
                f"the plate {frame.name!r} of the guide chooses rows of its own; give it the row numbers, as "
                "create_plates=lambda x, rows: pyro.plate(name, size, subsample=rows) of an automatic guide"
            )


def owners(*programs: Program) -> list[nn.Module]:
    """The modules that programs are, or are methods of."""
    found = [getattr(program, "__self__", program) for program in programs]
    return [owner for owner in found if isinstance(owner, nn.Module)]


def named(modules: list[nn.Module]) -> dict[str, nn.Module]:
    """The modules that no other one of them holds, by the names of their classes, numbered where one comes again."""
    inside = {id(part) for module in modules for part in module.modules() if part is not module}
    found: dict[str, nn.Module] = {}
    for module in modules:
        if id(module) in inside or any(module is one for one in found.values()):
            continue
        name, number = type(module).__name__, 2
        while name in found or hasattr(nn.ModuleDict, name):
            name, number = f"{type(module).__name__}_{number}", number + 1
        found[name] = module
    return found


def _warn_of_untrained(used: list[nn.Module], trained: set[int]) -> None:
    """Says which modules were used whose parameters are not named to Pyro, as its SVI would not train them either."""
    for module in used:
        own = [name for name, value in module.named_parameters(recurse=False) if value.requires_grad]
        left = [name for name in own if id(module._parameters[name]) not in trained]
        if left:
            warnings.warn(
                f"{', '.join(left)} of {type(module).__name__} are used by the pair but not named to Pyro: they are "
                "saved and stay as they are; call pyro.module in the program to train them",
                stacklevel=6,
            )


def observing(run: FirstRun, declared: Mapping[str, str]) -> dict[str, str]:
    """The sites that observe `x` and `y`, by these names: those that are declared, or the only observed one.

    Raises:
        InputError: a site that is declared is not observed.
    """
    for role, site in declared.items():
        if site not in run.observed:
            listed = ", ".join(run.observed) or "none"
            raise InputError(
                f"observed says that the site {site!r} observes {role}, but the observed sites are {listed}"
            )
    return dict(declared) if declared or len(run.observed) != 1 else {"x": run.observed[0]}


def fault(run: FirstRun, roles: Mapping[str, str], x: Tensor) -> str | None:
    """Why the site of x is not p(x | z) of one datapoint x, or not all that is observed; None if it is.

    Args:
        run: the first run.
        roles: the sites that observe `x` and `y`, by these names, as far as they are known.
        x: the first rows that the run was of (batch, *event_shape).
    """
    site = roles.get("x")
    if site is None:
        return f"the model observes {', '.join(run.observed) or 'nothing'}; name the site of x with observed=..."
    node, others = run.model_trace.nodes[site], [one for one in run.scored if one not in roles.values()]
    if others:
        return f"the model scores {', '.join(others)} besides {site!r}"
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    if [frame.dim for frame in frames] != [-1]:
        return (
            f"the site {site!r} does not lie in one plate over datapoints alone; make inner plates events with to_event"
        )
    value = node["value"]
    shapes = {tuple(value.shape[1:]), tuple(node["fn"].event_shape)}
    if len(shapes) > 1 or value.numel() != x.numel() or len(value) != len(x):
        listed = " and ".join(map(str, sorted(shapes)))
        return f"the site {site!r} observes the shape {listed}, and x has {tuple(x.shape[1:])}"
    if site not in run.as_given:
        return f"the site {site!r} observes other values than x"
    return f"the distributions of {', '.join(run.given_x)} depend on x itself" if run.given_x else None


def _factors(
    letter: str, program: Callable[..., Any], trace: Any, call: Call, outside: Collection[str] = ()
) -> Iterator[str]:
    """Lines such as `p(x | z) = Bernoulli (784,)`, from what values were computed of."""
    try:
        above: Any = get_dependencies(program, call.args, call.kwargs)["prior_dependencies"]
    except Exception:  # a program that does something which is not followed
        above = {}
    auxiliary = [site for site in trace.stochastic_nodes if trace.nodes[site]["infer"].get("is_auxiliary")]
    for site in [*trace.stochastic_nodes, *trace.observation_nodes]:
        node = trace.nodes[site]
        if not _is_random(node) or site in auxiliary:
            continue
        name = _name(node["fn"])
        if auxiliary and name == "Delta":  # a transformed draw, of a site of its own or of one for all
            of = next((one for one in auxiliary if one.startswith(f"{site}_")), auxiliary[0])
            name = f"transformed {type(innermost(trace.nodes[of]['fn'])).__name__}"
        given = [one for one in above.get(site, ()) if one != site and one not in auxiliary]
        given += ["x"] * (letter == "q" and site not in outside)
        shape = tuple(node["fn"].event_shape)
        bar = f" | {', '.join(given)}" if given else ""
        yield f"{letter}({site}{bar}) = {name} {shape if shape else ''}".rstrip()
