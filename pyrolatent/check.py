"""Can this model be believed? Every diagnostic that applies to a model and its data, with a verdict on each."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrolatent import check_figures, checks
from pyrolatent.arviz_data import to_arviz
from pyrolatent.data import Data, Split
from pyrolatent.errors import InputError
from pyrolatent.inference.annealed import annealed_evidence, bidirectional_evidence, summary
from pyrolatent.inference.draws import labels_for
from pyrolatent.inference.evidence import measure, observation_support, score
from pyrolatent.inference.modes import evaluating
from pyrolatent.inference.objectives import Inputs
from pyrolatent.inference.rules import likelihood_name, part_for, require_one_observed_site
from pyrolatent.inference.weights import arguments
from pyrolatent.models.latent import LatentVariableModel

Array = npt.NDArray[Any]
LEVEL = 0.01
"""Probability with which a model that is right fails one check of a hypothesis."""
SHARE = 0.05
"""Share that may fail or be missing where a verdict is on a share: a convention of this package."""
REPLICATES = 100
ENTRIES = 64
"""Entries of a vector up to which each is predicted from the others."""
BATCH = 100
LEAST = 20
"""Datapoints without which nothing can be said."""
OF_LIKELIHOODS = ("annealed evidence", "predictive checks", "predictive intervals", "memorisation")
"""Steps that have no meaning for a cross-entropy."""

SOURCES = {
    "k-hat": ("≤", "share above min(1 - 1/log10 S, 0.7), Vehtari et al. 2024; at most 5 %"),
    "inference gap": ("≤", "5 % of the rate, or 3 standard errors; Cremer et al. 2018"),
    "annealed evidence": ("≤", "3 standard errors; Wu et al. 2017"),
    "evidence bracket": ("≤", "1 nat; Grosse et al. 2015, Wu et al. 2017"),
    "active units": ("≥", "1 dimension of variance > 0.01; Burda et al. 2016"),
    "aggregated posterior": ("≤", "accuracy at 1 %; Lopez-Paz and Oquab 2017"),
    "sbc latents": ("≥", "p at 1 %; Talts et al. 2018, Sailynoja et al. 2022"),
    "sbc log p(x | z)": ("≥", "p at 1 %; Modrak et al. 2023"),
    "coverage": ("≥", "p at 1 %; Hermans et al. 2022"),
    "tarp": ("≥", "p at 1 %; Lemos et al. 2023"),
    "prior predictive": ("≥", "p at 1 %; Box 1980"),
    "posterior predictive": ("≥", "p at 1 %; Gelman et al. 1996"),
    "predictive intervals": ("≥", "p of PIT at 1 %; Gneiting et al. 2007"),
    "memorisation": ("≥", "p at 1 %; Meehan et al. 2020"),
}
"""How each value must stand to its threshold, what that is and where it comes from."""


@dataclass(frozen=True)
class Verdict:
    """One question and its answer.

    Attributes:
        check: its name.
        value: the number found.
        threshold: the number that it is held against.
        passed: whether the model passes.
        advice: what to change if it does not; else what the number says.
    """

    check: str
    value: float
    threshold: float
    passed: bool
    advice: str

    @property
    def relation(self) -> str:
        """How the value must stand to the threshold."""
        return SOURCES[self.check][0]

    @property
    def source(self) -> str:
        """What the threshold is and where it comes from."""
        return SOURCES[self.check][1]

    def __str__(self) -> str:
        mark = "passed" if self.passed else "FAILED"
        return f"{mark}  {self.check}: {self.value:.3g} {self.relation} {self.threshold:.3g}; {self.advice}"


@dataclass(frozen=True)
class Checks:
    """What `check` found.

    Attributes:
        model: the model.
        data: the data, the split cut to the datapoints that were looked at.
        split: which part of it was held against the model.
        verdicts: the answers.
        skipped: checks that do not apply, with the reason.
        numbers: what is reported without a verdict: elbo, log_evidence, rate, distortion, ...; nats a datapoint.
        arrays: what the verdicts were computed from.
    """

    model: LatentVariableModel
    data: Data
    split: str
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def summary(self) -> str:
        """How many of the verdicts are passes, and on what data."""
        passed = sum(verdict.passed for verdict in self.verdicts)
        return f"{self.split} of {self.data.name}: {passed} of {len(self.verdicts)} passed"

    def __str__(self) -> str:
        left_out = (f"{name}: left out; {reason}" for name, reason in self.skipped.items())
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.numbers.items())
        return "\n".join([self.summary, *map(str, self.verdicts), *left_out, f"nats a datapoint: {numbers}"])

    def json(self) -> dict[str, Any]:
        """Verdicts, numbers and what was skipped in JSON's types."""
        return {
            "split": self.split,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "skipped": self.skipped,
            "numbers": self.numbers,
        }

    def figure(self) -> Figure:
        """Everything that was checked on one page."""
        return check_figures.overview(self.arrays)

    def figures(self) -> dict[str, Figure]:
        """That page, and pictures of the datapoints with the largest k-hat and of the samples nearest to training."""
        drawn = {"checks": self.figure()}
        if np.isfinite(self.arrays.get("worst_khat", np.empty(0))).any():
            drawn["worst_khat"] = check_figures.worst(self.arrays)
        if "nearest_samples" in self.arrays:
            drawn["nearest_training"] = check_figures.neighbours(self.arrays)
        return drawn

    def to_arviz(self, **options: Any) -> Any:
        """Draws, log-likelihoods and data as ArviZ knows them; options of `pyrolatent.to_arviz`."""
        return to_arviz(self.model, self.data, split=self.split, **options)


def check(
    model: LatentVariableModel,
    data: Data,
    *,
    split: str = "test",
    size: int = 1000,
    draws: int = 1000,
    simulations: int = 500,
    annealed: int = 30,
    statistics: Mapping[str, checks.Statistic] | None = None,
    seed: int = 0,
    on_step: Callable[[str, int, int], Any] | None = None,
) -> Checks:
    """Asks whether a fitted model can be believed.

    Args:
        model: a fitted model.
        data: data with the event shape and in the support of the model's likelihood.
        split: the part of the data that is held against the model: "train", "validation" or "test".
        size: number of its datapoints, from the first.
        draws: from q(z | x) for each datapoint.
        simulations: data sets of one datapoint that the model draws, for the calibration of its posterior.
        annealed: number of datapoints whose evidence is found by annealing.
        statistics: functions of a data set (n, *event_shape) to compare with replicates, beside the usual ones.
        seed: of all draws.
        on_step: called with the name of what begins, its place and the number of steps.

    Raises:
        InputError: the model has no posterior, the data does not fit it, or there is no such split.
    """
    if not isinstance(model, LatentVariableModel):
        raise InputError(f"{type(model).__name__} has no posterior that could be checked; fit a vae")
    part = part_for(model, data, split)
    for name, number, least in (
        ("size", size, LEAST), ("draws", draws, 25), ("simulations", simulations, 50), ("annealed", annealed, 0)
    ):  # fmt: skip
        if number < least:
            raise InputError(f"{name} was {number}; at least {least} are needed")
    if len(part) < LEAST:
        raise InputError(f"the {split} split of {data.name} has {len(part)} datapoints; at least {LEAST} are needed")
    support = observation_support(model, part.batch(slice(0, 1)), data)
    data.check_support(support, f"the {likelihood_name(model)} likelihood")
    require_one_observed_site(model, part.batch(slice(0, 1)))
    with evaluating(model, seed):
        # One draw of what is drawn anew for each batch, so that all steps are about the same datapoints.
        fixed: Any = {split: Split(*part.batch(slice(0, size)))}
    data = replace(data, **fixed)
    found = Checks(model, data, split)
    likelihood = measure(model, data, support) != "cross-entropy"
    questions = _Questions(found, draws, simulations, seed)
    steps: dict[str, Callable[[], None]] = {
        "weights": questions.weights,
        "aggregated posterior": questions.aggregated,
        "calibration": questions.calibration,
        "inference gap": questions.gaps,
        "annealed evidence": lambda: questions.annealed(annealed),
        "predictive checks": lambda: questions.predictive(statistics or {}),
        "predictive intervals": questions.intervals,
        "memorisation": questions.memorisation,
    }
    for place, (name, step) in enumerate(steps.items()):
        if on_step:
            on_step(name, place, len(steps))
        if not likelihood and name in OF_LIKELIHOODS:
            found.skipped[name] = "grey values under a Bernoulli are no draws of it; binarize the data"
            continue
        with pyro.validation_enabled(False), evaluating(model, seed), questions.skipping(name):
            step()
    return found


class _Questions:
    """The steps of `check`, which share draws."""

    def __init__(self, found: Checks, draws: int, simulations: int, seed: int) -> None:
        self.found, self.model = found, found.model
        self.split: Split = getattr(found.data, found.split)
        self.size, self.draws, self.simulations, self.seed = len(self.split), draws, simulations, seed
        self.log_weights = torch.empty(0)
        self.rate = math.nan

    def weights(self) -> None:
        """k-hat of held-out datapoints; rate, distortion, active units."""
        scores, first = [], []
        for inputs in self._batches():
            first.append(checks.draw(self.model, inputs, self.draws, keep=1))
            scores.append(score(self.model, *inputs, particles=min(self.draws, 100)))
        self.first = checks.joined(first)
        self.log_weights = self.first.log_weights
        khat = checks.khat(self.log_weights)
        evidence, mcse, ess = summary(self.log_weights)
        rate = torch.cat([each.kl for each in scores])
        distortion = -torch.cat([each.reconstruction for each in scores])
        self.rate = rate.mean().item()
        self._number(elbo=self.log_weights, rate=rate, distortion=distortion, ess=ess)
        if self.found.data.binarize != "relaxed":
            self._number(log_evidence=evidence)
        self._array(khat=khat, ess=ess, log_evidence=evidence, log_evidence_mcse=mcse, rate=rate, distortion=distortion)
        threshold = checks.khat_threshold(self.draws)
        self._array(khat_threshold=torch.tensor(threshold))
        above = (khat > threshold).double().mean().item()
        self._verdict(
            "k-hat", above, SHARE,
            f"the share of datapoints with k-hat above {threshold:.2f}: q misses mass there; declare posterior: "
            "multivariate_normal, student_t or a flow, train with iwae, and take log p(x) from --method annealed",
            f"importance sampling from q can be relied on (k-hat at most {threshold:.2f})",
        )  # fmt: skip
        worst = khat.nan_to_num(-math.inf).argsort(descending=True)[:10]
        shown = self.split.batch(worst)
        latents = {site: value[0, worst] for site, value in self.first.latents.items()}
        decoded = self.model.decode(latents, arguments(self.model, shown)[1])
        self._array(worst_datapoints=shown.x, worst_reconstructions=decoded.mean, worst_khat=khat[worst])
        means = torch.cat([torch.cat([*each.means.values()], -1) for each in scores])
        active = checks.active_units(means)
        self._array(mean_variance=means.var(0), active=active)
        if all(each.kl_dimensions.keys() == each.means.keys() for each in scores):
            by_dimension = torch.cat([torch.cat([*each.kl_dimensions.values()], -1) for each in scores])
            self._array(kl_dimensions=by_dimension.mean(0))
        self._verdict(
            "active units", float(active.sum()), 1.0,
            "posterior collapse: q(z | x) does not depend on x and the decoder ignores z; train with kl_warmup, a "
            "smaller beta, a weaker decoder or more training, or declare another likelihood",
            f"of {len(active)} dimensions; what is not active costs nothing and holds nothing",
        )  # fmt: skip

    def aggregated(self) -> None:
        """Mutual information and marginal KL of the aggregated posterior; a classifier between it and the prior."""
        own = {site: value[0] for site, value in self.first.latents.items()}
        latents = _flat(own)
        prior = _flat(checks.simulate(self.model, self.size, self._labels(self.size))[1])
        accuracy, threshold = checks.classifier_two_sample(latents, prior, seed=self.seed)
        self._array(aggregated=latents, prior=prior)
        self._verdict(
            "aggregated posterior", accuracy, threshold,
            "a classifier tells posterior draws from prior draws: the prior has holes, so samples are worse than "
            "reconstructions; declare prior: mixture, vamp, coupling or spline",
            "a classifier cannot tell posterior draws from prior draws",
        )  # fmt: skip
        if not self._scores():
            raise InputError("the posterior cannot score draws of other datapoints, so q(z) is not known")
        columns = [checks.log_posterior_of(self.model, inputs, own) for inputs in self._batches()]
        matrix = torch.cat(columns, 1).double()
        log_prior = self.first.log_prior[0].double()
        information, largest = checks.mutual_information(matrix), math.log(len(matrix))
        self._number(mutual_information=information)
        if information.mean() < largest - 0.5:
            self._number(marginal_kl=checks.marginal_kl(matrix, log_prior))
        else:
            self.found.skipped["marginal_kl"] = (
                f"{len(matrix)} datapoints are told apart with {information.mean():.2f} of at most log {len(matrix)} = "
                f"{largest:.2f} nats, so that the mutual information is a lower bound and q(z) is not known"
            )

    def calibration(self) -> None:
        """Ranks of what the model drew among draws from q; coverage; TARP."""
        model, count, drawn = self.model, self.simulations, min(self.draws, 200)
        y = self._labels(count)
        x, truth = checks.simulate(model, count, y)
        inputs = [(x[i : i + BATCH], None if y is None else y[i : i + BATCH], None) for i in range(0, count, BATCH)]
        parts = [checks.draw(model, each, drawn) for each in inputs]
        at = [{site: value[i : i + BATCH] for site, value in truth.items()} for i in range(0, count, BATCH)]
        given = zip(at, inputs, strict=True)
        log_likelihood = torch.cat([model.decode(z, each[1]).log_prob(each[0]) for z, each in given])
        whole = checks.joined(parts)
        z, own = _flat(truth), _flat(whole.latents, 2)
        ranks = checks.fractional_ranks(z, own)
        self._array(sbc_latents=ranks)
        p = [checks.uniformity(column) for column in ranks.T]
        worst = min(1.0, len(p) * min(p))
        self._verdict(
            "sbc latents", worst, LEVEL,
            f"latents that the model draws are not where q says, worst in dimension {int(np.argmin(p)) + 1} of "
            f"{len(p)}: declare another posterior, a wider encoder, train longer, or objective: local",
            f"the smallest of {len(p)} p-values, times {len(p)}",
        )  # fmt: skip
        ranks = checks.fractional_ranks(log_likelihood, whole.log_likelihood)
        self._array(sbc_log_likelihood=ranks)
        p_value = checks.uniformity(ranks)
        low = ranks.median() > 0.5
        self._verdict(
            "sbc log p(x | z)", p_value, LEVEL,
            f"draws from q explain x {'worse' if low else 'better'} than the z it came from: q is "
            f"{'too wide, off, or ignores x' if low else 'too narrow'}; declare another posterior or a wider encoder",
            "draws from q explain x as well as the z it came from",
        )  # fmt: skip
        other, latents = checks.simulate(model, count, y)
        references = checks.references_from_data(other, _flat(latents), x)
        ranks = checks.tarp(z, own, references)
        self._array(tarp=ranks)
        p_value = checks.uniformity(ranks)
        self._verdict(
            "tarp", p_value, LEVEL,
            "distances to points that depend on x are not those of the exact posterior: declare another posterior, "
            "a wider encoder, or train longer",
            "distances to points that depend on x are those of the exact posterior",
        )  # fmt: skip
        if not self._scores():
            raise InputError("the posterior cannot score what it did not draw, so its coverage is not known")
        scored = [
            checks.log_posterior_of(model, each, {site: value.unsqueeze(0) for site, value in values.items()})[0]
            for values, each in zip(at, inputs, strict=True)
        ]
        ranks = checks.fractional_ranks(torch.cat(scored), whole.log_posterior)
        levels = torch.linspace(0.05, 0.95, 19, device=ranks.device)
        self._array(coverage_ranks=ranks, coverage_levels=levels, coverage=checks.coverage(ranks, levels))
        p_value, at_90 = checks.uniformity(ranks), checks.coverage(ranks, levels[17:18]).item()
        self._verdict(
            "coverage", p_value, LEVEL,
            f"regions of 90 % of q hold {at_90:.0%} of the latents that the model drew: q is too "
            f"{'narrow' if at_90 < 0.9 else 'wide'}; declare posterior: multivariate_normal or a flow",
            f"regions of 90 % of q hold {at_90:.0%} of the latents that the model drew",
        )  # fmt: skip

    def gaps(self) -> None:
        """Approximation and amortization gap of the first datapoints."""
        inputs = next(self._batches())
        found = checks.gaps(self.model, inputs, draws=self.draws)
        gap = found.inference
        error = math.hypot(*(found.error[[0, 2]].square().sum(1).sqrt() / len(gap)).tolist())
        self._array(inference_gap=gap)
        threshold, larger = max(SHARE * self.rate, 3 * error), ""
        if found.approximation is not None and found.amortization is not None:
            self._array(approximation_gap=found.approximation, amortization_gap=found.amortization)
            self._number(approximation_gap=found.approximation, amortization_gap=found.amortization)
            parts = (found.approximation.mean().item(), found.amortization.mean().item())
            larger = "family" if parts[0] > parts[1] else "encoder"
        else:
            self.found.skipped["amortization gap"] = "the posterior has no numbers that could be refined"
        self._number(inference_gap=gap)
        value = gap.mean().item()
        self._verdict(
            "inference gap", value, threshold,
            {
                "family": "most of it is the family's: declare posterior: multivariate_normal or a flow",
                "encoder": "most of it is the encoder's: declare a wider encoder, train longer, or objective: local",
                "": "q is not the posterior: declare another one",
            }[larger],
            "nats by which the bound lies below log p(x)",
        )  # fmt: skip

    def annealed(self, size: int) -> None:
        """Evidence without the encoder, and a bracket of it on data that the model drew."""
        if not size:
            raise InputError("annealed was 0")
        settings: Any = {"size": min(size, self.size), "chains": 8, "steps": 400, "leapfrog": 5, "seed": self.seed}
        found = annealed_evidence(self.model, self.found.data, split=self.found.split, **settings)
        truth = found.each["log_evidence"]
        sampled, mcse, _ = summary(self.log_weights[:, : len(truth)].double().cpu())
        value = (truth - sampled).mean().item()
        error = math.hypot(found.log_evidence_mcse or 0.0, mcse.square().sum().sqrt().item() / len(truth))
        self._array(annealed_evidence=truth, sampled_evidence=sampled)
        # The log of a mean lies below the mean of it by half its squared error.
        threshold = 3 * error + 0.5 * error**2 * len(truth) + 1e-4
        self._verdict(
            "annealed evidence", value, threshold,
            "annealing finds more log p(x) than sampling from q, which so misses mass: declare another posterior, "
            "and report evaluate --method annealed",
            "nats by which annealed log p(x) exceeds that by importance sampling",
        )  # fmt: skip
        bracket = bidirectional_evidence(self.model, y=self._labels(settings["size"]), **settings)
        self._number(bracket_lower=torch.tensor(bracket.lower), bracket_upper=torch.tensor(bracket.upper))
        self._verdict(
            "evidence bracket", bracket.width, 1.0,
            "annealing is too short for this decoder's posterior; evaluate with --method annealed --temperatures 5000",
            "nats between the bounds on log p(x) of data that the model drew",
        )  # fmt: skip

    def predictive(self, own: Mapping[str, checks.Statistic]) -> None:
        """Replicated data sets from the prior and from the posterior."""
        batch = self.split.batch(slice(0, min(500, self.size)))
        if batch.mask is not None:
            raise InputError("replicates are complete, but the data has a mask")
        inputs = arguments(self.model, batch)
        statistics = checks.STATISTICS | dict(own)
        observed = {name: _vector(function(batch.x)) for name, function in statistics.items()}
        for kind, posterior in (("prior predictive", False), ("posterior predictive", True)):
            sets = [checks.replicate(self.model, inputs, posterior=posterior) for _ in range(REPLICATES)]
            replicated = {
                name: torch.stack([_vector(function(each)) for each in sets]) for name, function in statistics.items()
            }
            p, compared = checks.predictive_p_values(observed, replicated)
            worst = min(p, key=lambda name: p[name])
            value = min(1.0, len(p) * p[worst])
            for name, (number, values) in compared.items():
                self.found.arrays[f"{kind}: {name}"] = np.concatenate([[number], values])
            self._verdict(
                kind, value, LEVEL,
                f"the {worst} of the data is not that of data drawn {'given' if posterior else 'without'} x: declare "
                + ("another likelihood or a larger decoder" if posterior else "another prior, likelihood or decoder"),
                f"the smallest of {len(p)} p-values ({worst}), times {len(p)}",
            )  # fmt: skip

    def intervals(self) -> None:
        """Each entry of a vector predicted from the others: intervals and PIT."""
        shape = self.model.event_shape
        if len(shape) != 1 or shape.numel() > ENTRIES or shape.numel() < 2:
            raise InputError(
                f"entries are predicted from others in vectors of 2 to {ENTRIES}, but x has {tuple(shape)}"
            )
        batch = self.split.batch(slice(0, min(300, self.size)))
        inputs = arguments(self.model, batch)
        columns = []
        for entry in range(shape.numel()):
            drawn = checks.conditional_draws(self.model, inputs, entry, draws=100, particles=min(self.draws, 300))
            columns.append(checks.fractional_ranks(batch.x[:, entry], drawn))
        pit = torch.stack(columns, 1)
        seen = torch.ones_like(batch.x, dtype=torch.bool) if batch.mask is None else batch.mask
        p = [checks.uniformity(pit[seen[:, entry], entry]) for entry in range(pit.shape[1]) if seen[:, entry].any()]
        self._array(pit=torch.where(seen, pit, math.nan))
        value, inside = min(1.0, len(p) * min(p)), ((pit[seen] - 0.5).abs() < 0.45).double().mean().item()
        self._number(interval_coverage=torch.tensor(inside))
        self._verdict(
            "predictive intervals", value, LEVEL,
            f"intervals of 90 % hold {inside:.0%} of held-out entries, worst entry {int(np.argmin(p)) + 1}: declare a "
            "likelihood with other tails (student_t, a learned or predicted scale, zero-inflated), or another prior",
            f"intervals of 90 % hold {inside:.0%} of held-out entries",
        )  # fmt: skip

    def memorisation(self) -> None:
        """Whether samples lie nearer to training datapoints than held-out datapoints do."""
        train = self.found.data.train.to(self.split.x.device)
        if train.mask is not None:
            raise InputError("distances are between complete datapoints, but the data has a mask")
        if self.found.split == "train":
            raise InputError("samples are held against held-out datapoints; give split: validation or test")
        count = min(500, self.size)
        samples = checks.simulate(self.model, count, self._labels(count))[0]
        both = torch.cat([samples, self.split.batch(slice(0, count)).x])
        distances, nearest = torch.full((len(both),), math.inf, device=both.device), torch.zeros_like(both)
        for batch in train.batches(10_000):
            found, place = checks.nearest_distances(both, batch.x)
            closer = found < distances
            nearest[closer] = batch.x[place[closer]]
            distances = torch.minimum(found, distances)
        (distances, usual), nearest = distances.split([count, len(both) - count]), nearest[:count]
        share, p_value = checks.nearer(distances, usual)
        order = distances.argsort()[:10]
        self._array(sample_distances=distances, held_out_distances=usual)
        self._array(nearest_samples=samples[order], nearest_training=nearest[order])
        self._number(nearer_share=torch.tensor(share))
        self._verdict(
            "memorisation", p_value, LEVEL,
            f"samples lie nearer to training datapoints than held-out ones do in {share:.0%} of pairs: the model "
            "copies or blurs them; look at them, then declare a smaller decoder, patience or another likelihood",
            f"samples lie nearer to training datapoints than held-out ones do in {share:.0%} of pairs",
        )  # fmt: skip

    @contextmanager
    def skipping(self, name: str) -> Iterator[None]:
        """Within this context what does not apply is skipped with its reason."""
        try:
            yield
        except InputError as error:
            self.found.skipped[name] = str(error)

    def _batches(self) -> Iterator[Inputs]:
        for start in range(0, self.size, BATCH):
            yield arguments(self.model, self.split.batch(slice(start, min(start + BATCH, self.size))))

    def _labels(self, count: int) -> Tensor | None:
        """Labels of conditional models, those of the split over and over."""
        return labels_for(self.model, count, of_data=self.split.y)

    def _scores(self) -> bool:
        """Whether every posterior can score values that it did not draw."""
        return all(getattr(module, "scores_any_value", True) for module in self.model.modules())

    def _verdict(self, name: str, value: float, threshold: float, advice: str, otherwise: str) -> None:
        passed = value >= threshold if SOURCES[name][0] == "≥" else value <= threshold
        self.found.verdicts.append(Verdict(name, value, threshold, passed, otherwise if passed else advice))

    def _number(self, **values: Tensor) -> None:
        self.found.numbers.update({name: value.double().mean().item() for name, value in values.items()})

    def _array(self, **values: Tensor) -> None:
        self.found.arrays.update({name: value.detach().cpu().numpy() for name, value in values.items()})


def _flat(latents: Mapping[str, Tensor], lead: int = 1) -> Tensor:
    """All sites of (draws, datapoints, ...) or (datapoints, ...) side by side, their dimensions flattened."""
    return torch.cat(
        [value.flatten(lead) if value.dim() > lead else value.unsqueeze(-1) for value in latents.values()], -1
    )


def _vector(value: Any) -> Tensor:
    return torch.as_tensor(value).double().reshape(-1)
