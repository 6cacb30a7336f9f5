"""Draws, predictions and data of a fitted model for ArviZ, before and after its version 1."""

import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import torch
from torch import Tensor

from pyrolatent.data.splits import Data
from pyrolatent.errors import InputError, at_least, at_least_one
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import decoded, draw, labels_for, recorded, simulate, simulate_prior
from pyrolatent.inference.evidence.importance import observation_support
from pyrolatent.inference.evidence.psis import khat
from pyrolatent.inference.rules import split_for
from pyrolatent.inference.weights import arguments
from pyrolatent.models.latent import LatentVariableModel

Array = npt.NDArray[Any]
CHAINS = 4
"""Number of chains: draws from q are independent, so chains are only a partition, for convergence diagnostics."""
EVENT_NAMES = {1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}


def to_arviz(
    model: LatentVariableModel,
    data: Data,
    *,
    split: str = "test",
    size: int = 50,
    draws: int = 400,
    predictive: int = 100,
    seed: int = 0,
) -> Any:
    """Converts a fitted model's draws and predictions for some datapoints to an ArviZ object.

    | group | variables and dimensions |
    | --- | --- |
    | posterior | a variable for each latent site (chain, draw, datapoint, site_dim), drawn from q(z or x), and for each
    `pyro.deterministic` site, computed from them; without a datapoint for sites outside the plate over datapoints,
    which are drawn from q(u) and which the others are given |
    | sample_stats | log_weight (chain, draw, datapoint), nats; khat (datapoint) |
    | log_likelihood | x: log p(x or z) (chain, draw, datapoint), nats |
    | posterior_predictive | x (chain, draw, datapoint, ...), drawn at the first posterior draws |
    | prior, prior_predictive | the latent and deterministic sites (chain, draw, site_dim) and x (chain, draw, ...) of
    one new datapoint a draw; sites outside the plate are drawn from their prior p(u), not from q(u) |
    | observed_data | x (datapoint, ...) |
    | constant_data | row: its number in the data; label (datapoint); observed (datapoint, ...) of masked data |

    The coordinates of x are the names of its columns, if they have some. Draws are independent; weighted by
    exp(log_weight) they represent the exact posterior. PSIS-LOO is ill-posed here: leaving out a datapoint leaves its
    own latents without data. For a Pyro pair that does not observe x itself, predictions are left out, and the prior is
    of the sites outside the plate and of deterministic ones, of each datapoint where they lie in the plate.

    Args:
        model: a fitted model.
        data: data with the event shape and in the support of the model's likelihood.
        split: "train", "validation" or "test".
        size: number of its datapoints, from the first.
        draws: total number of draws from q per datapoint, and from the prior, divided equally among four chains.
        predictive: total number of draws of x per datapoint, at most `draws`.
        seed: seed of all draws.

    Returns:
        An `InferenceData` with ArviZ below 1, else a `DataTree`; `to_netcdf` of either writes a file that
        `arviz.from_netcdf` reads.

    Raises:
        InputError: the data do not fit the model, there is no such split, or there are too few draws.
    """
    part = split_for(model, data, split)
    at_least_one(size=size)
    at_least(CHAINS, draws=draws, predictive=predictive)
    if predictive > draws:
        raise InputError(f"predictive was {predictive}, but x is drawn at the first of {draws} draws; give no more")
    observation_support(model, part.batch(slice(0, 1)), data)
    batch = part.batch(slice(0, min(size, len(part))))
    inputs = arguments(model, batch)
    x, y, _ = inputs
    count, per_chain = len(x), draws // CHAINS
    with torch.no_grad(), pyro.validation_enabled(False), evaluating(model, seed):
        drawn = draw(model, inputs, per_chain * CHAINS)
        posterior = {site: (value, True) for site, value in drawn.latents.items()}
        posterior |= {site: (value, False) for site, value in drawn.outside.items()}
        of_program = recorded(model, inputs, drawn.latents, drawn.outside)
        posterior |= of_program
        prior: dict[str, tuple[Tensor, bool]] = {}
        predictions: dict[str, dict[str, Array]] = {}
        if model.observes_x:
            few = predictive // CHAINS
            chosen = {site: _chains(value)[:, :few] for site, value in drawn.latents.items()}
            flat = {site: value.flatten(0, 1) for site, value in chosen.items()}
            outside = {site: _chains(value)[:, :few].flatten(0, 1) for site, value in drawn.outside.items()}
            replicates = []
            for i in range(CHAINS * few):
                with model.given({site: value[i] for site, value in outside.items()}):
                    replicates.append(decoded(model, {s: v[i] for s, v in flat.items()}, y, [count]).sample())
            predictions["posterior_predictive"] = {"x": _array(_chains(torch.stack(replicates)))}
        if of_program or model.global_sites:
            prior = simulate_prior(model, inputs, per_chain * CHAINS)
            # A recorded site whose shape changes with the number of datapoints is left out.
            shapes = {site: value.shape[1 + of_each :] for site, (value, of_each) in posterior.items()}
            prior = {
                site: (value, of_each)
                for site, (value, of_each) in prior.items()
                if site not in shapes or shapes[site] == value.shape[1 + of_each :]
            }
        elif model.observes_x:
            labels = labels_for(model, per_chain * CHAINS, of_data=y)
            prior_x, simulated = simulate(model, per_chain * CHAINS, labels)
            prior = {site: (value, False) for site, value in {model.observed_site: prior_x, **simulated}.items()}
        if model.observes_x:
            predictions["prior_predictive"] = {"x": _array(_chains(prior.pop(model.observed_site)[0]))}
    event = EVENT_NAMES.get(len(model.event_shape), tuple(f"x_dim_{i}" for i in range(len(model.event_shape))))
    groups: dict[str, dict[str, Array]] = {
        "posterior": {site: _array(_chains(value)) for site, (value, _) in posterior.items()},
        "sample_stats": {"log_weight": _array(_chains(drawn.log_weights_of_states))},
        "log_likelihood": {"x": _array(_chains(drawn.log_likelihood))},
        "posterior_predictive": {},
        "prior": {site: _array(_chains(value)) for site, (value, _) in prior.items()},
        **predictions,
        "observed_data": {"x": _array(x)},
        "constant_data": {"row": part.row_numbers[:count].numpy()},
    }
    if batch.y is not None:
        groups["constant_data"]["label"] = _array(batch.y)
    if batch.mask is not None:
        groups["constant_data"]["observed"] = _array(batch.mask)
    over, vectors = ["datapoint"], int(batch.y is not None and batch.y.dim() > 1)
    coords: dict[str, Any] = {"datapoint": np.arange(count)}
    coords |= dict(zip(event, map(np.arange, model.event_shape), strict=True))
    names = [column.name for column in data.columns or ()]
    if names != [*map(str, range(len(names)))]:
        coords[event[0]] = names

    def dims_of(group: Mapping[str, tuple[Tensor, bool]]) -> dict[str, list[str]]:
        """The dimensions of sites, whose coordinates are noted."""
        found = {}
        for site, (value, of_each) in group.items():
            shape = value.shape[1 + of_each :]
            own = [f"{site}_dim_{i}" for i in range(len(shape))] if len(shape) != 1 else [f"{site}_dim"]
            coords.update(zip(own, map(np.arange, shape), strict=True))
            found[site] = over * of_each + own
        return found

    dims: dict[str, dict[str, list[str]]] = {
        "posterior": dims_of(posterior),
        "sample_stats": {"log_weight": over},
        "log_likelihood": {"x": over},
        "posterior_predictive": {"x": [*over, *event]},
        "prior": dims_of(prior),
        "prior_predictive": {"x": [*event]},
        "observed_data": {"x": [*over, *event]},
        "constant_data": {"row": over, "label": over + ["label_dim"] * vectors, "observed": [*over, *event]},
    }
    found = _from_dict({name: group for name, group in groups.items() if group}, coords, dims)
    tails = _array(khat(drawn.log_weights_of_states))
    found["sample_stats"]["khat"] = import_module("xarray").DataArray(
        tails, dims=over, coords={"datapoint": coords["datapoint"]}
    )
    return found


def _from_dict(groups: Mapping[str, Mapping[str, Array]], coords: Mapping[str, Any], dims: Mapping[str, Any]) -> Any:
    """`from_dict` for each group, since a variable has other dimensions in each.

    ArviZ below 1 takes one keyword per group and returns an `InferenceData`; ArviZ 1 takes a mapping of groups and
    returns a `DataTree`.
    """
    found = None
    for group, variables in groups.items():
        names = {name for dimensions in dims[group].values() for name in dimensions}
        described = {"coords": {name: coords[name] for name in names if name in coords}, "dims": dims[group]}
        if _below_1():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the first import announces ArviZ 1
                arviz = import_module("arviz")
            one = arviz.from_dict(**{group: variables}, **described)
        else:
            one = import_module("arviz_base").from_dict({group: variables}, **described)
        if found is None:
            found = one
        elif _below_1():
            found.extend(one)
        else:
            found[group] = one[group]
    return found


def _below_1() -> bool:
    try:
        return int(version("arviz").partition(".")[0]) < 1
    except PackageNotFoundError:  # only arviz-base, which belongs to ArviZ 1
        return False


def _chains(values: Tensor) -> Tensor:
    """(chains, draws / chains, ...) from (draws, ...)."""
    return values.unflatten(0, (CHAINS, -1))


def _array(values: Tensor) -> Array:
    return values.detach().cpu().numpy()
