"""The models of this package as estimators of scikit-learn.

    make_pipeline(LatentTransformer(latent_dim=5, prior="mixture"), LogisticRegression()).fit(X, y)

The parameters of an estimator are declarations of the parts of its model, as in an experiment file, and settings of
training. A fitted model computes in float64 on the CPU, and a row's result does not depend on the other rows, since all
have the same random numbers.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from pyrolatent.data.load import load_data
from pyrolatent.declaration import Component, build, target
from pyrolatent.errors import InputError, at_least_one
from pyrolatent.inference.common_random_numbers import CommonRandomNumbers
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.draws import AT_ONCE, MAX_ELEMENTS, decoded, draw, posterior_means, weighted_draws
from pyrolatent.inference.evidence.pseudo_likelihood import pseudo_likelihood
from pyrolatent.inference.objectives.base import as_objective
from pyrolatent.inference.training.fit import fit, training_settings
from pyrolatent.inference.weights import Inputs, log_mean_exp
from pyrolatent.models.arrays import as_inputs
from pyrolatent.models.energies.rbm import EXACT
from pyrolatent.models.model import Capability
from pyrolatent.tasks import impute, sample
from pyrolatent.tasks.codes import DRAWS

Array = NDArray[Any]
DEFAULTS: dict[str, Any] = {"latent_dim": 2, "likelihood": "normal"}
"""Parts that neither an estimator nor its `model` declares, of models that have them."""
_LOCK = threading.RLock()
"""One thread runs models at a time: Pyro's handlers and torch's generator belong to the process."""


@dataclass(kw_only=True, eq=False, repr=False)
class Estimator(BaseEstimator):
    """Base class of the estimators: how they are trained.

    Args:
        objective: what is maximised; None is `analytic_elbo`, or `pcd` for an RBM.
        max_iter: largest number of epochs.
        batch_size: number of rows per minibatch.
        learning_rate: learning rate of Adam.
        early_stopping: whether rows are held out, training stops when their score does not improve, and the best
            weights are kept. Otherwise all rows are trained on for `max_iter` epochs.
        validation_fraction: share of the rows that is held out.
        n_iter_no_change: number of epochs without improvement after which training stops early.
        warm_start: whether `fit` goes on training the fitted model.
        settings: further settings of `pyrolatent.fit`, such as `{"kl_warmup": "linear"}`.
        verbose: whether to show a progress bar.
        random_state: determines the rows that are held out, initial weights, and all draws.

    Attributes:
        model_: the fitted model, in float64, which all functions of the package take.
        n_iter_: number of epochs.
        loss_curve_: training loss after each epoch, nats per row.
        validation_scores_: score of the rows that are held out after each epoch; None without early stopping.
        random_state_: generator of draws that are new in every call.
        n_features_in_: number of columns of X.
        feature_names_in_: names of the columns of X, if they are strings.
    """

    objective: Any = None
    max_iter: int = 100
    batch_size: int = 128
    learning_rate: float = 3e-3
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    warm_start: bool = False
    settings: Any = None
    verbose: bool = False
    random_state: Any = None

    _default_objective: ClassVar[str] = "analytic_elbo"

    def _declared(self, x: Array) -> Any:
        """The declaration of the model of x (rows, *event_shape)."""
        raise NotImplementedError

    def _require(self, model: Any) -> None:
        """Refuses a model that is not of the kind of the estimator."""

    def _train(self, x: Array, y: Array | None = None, *, epochs: int | None = None, **options: Any) -> None:
        """Fits the model to data.

        Args:
            x: (rows, *event_shape).
            y: codes of classes, (rows,), -1 where unknown; None for none.
            epochs: number of epochs by which the training of a fitted model goes on; None is `max_iter`.
            **options: further options of `load_data`.
        """
        at_least_one(max_iter=self.max_iter, batch_size=self.batch_size, n_iter_no_change=self.n_iter_no_change)
        goes_on = bool(self.warm_start or epochs) and hasattr(self, "model_")
        if not goes_on:
            self.random_state_ = np.random.RandomState(check_random_state(self.random_state).randint(2**31 - 1))
            self._seed = self._draw_seed()
        names = getattr(self, "feature_names_in_", None)
        rows: Any = x if names is None or x.ndim > 2 else pd.DataFrame(x, columns=names)
        held = self.validation_fraction if self.early_stopping else rows if y is None else (rows, y)
        one = rows[:1] if y is None else (rows[:1], y[:1])  # no row is kept for a test
        objective = as_objective(build("objective", self.objective or self._default_objective))
        own: dict[str, Any] = {
            "epochs": epochs or self.max_iter,
            "batch_size": self.batch_size,
            "optimizer": {"Adam": {"lr": self.learning_rate}},
            "patience": self.n_iter_no_change if self.early_stopping else None,
            "seed": self._draw_seed(),
        }
        taken = own if objective.settings is None else objective.settings
        settings = {name: value for name, value in own.items() if name in taken}
        settings |= training_settings().validate(self.settings or {}, "settings")
        with _LOCK, warnings.catch_warnings(record=True) as caught:
            data = load_data(rows, labels=y, validation=held, test=one, seed=self._seed, **options)
            if goes_on:
                model = copy.deepcopy(self.model_).float()
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(self._seed)
                    shapes = {"event_shape": data.event_shape, "label_dim": data.label_dim}
                    model = build("model", self._declared(x), **shapes)
            self._require(model)
            run = fit(model, data, progress=bool(self.verbose), objective=objective, **settings)
        for message, category in dict.fromkeys((str(each.message), each.category) for each in caught):
            self._pass_on(message, category, epochs is None)
        self.model_: Any = run.model.cpu().double()
        self.n_iter_ = len(run.history)
        self.loss_curve_ = [row["train_loss"] for row in run.history]
        scores = [[v for k, v in row.items() if k.startswith("validation") and v is not None] for row in run.history]
        self.validation_scores_ = [score for (score,) in scores] if self.early_stopping else None

    def _pass_on(self, message: str, category: type[Warning], whole: bool) -> None:
        """Passes on a warning of training, in the words of the parameters.

        Args:
            message: the warning.
            category: its category.
            whole: whether training was to converge.
        """
        if not message.startswith("not converged"):
            warnings.warn(message, category, stacklevel=4)
        elif whole:
            message = message.replace("set epochs: ", "set max_iter=")
            message = message if self.early_stopping else message.replace("validation", "training")
            warnings.warn(message, ConvergenceWarning, stacklevel=4)

    def _validated(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        """X (rows, columns) in float64, and y if it is given."""
        finite = "allow-nan" if self.__sklearn_tags__().input_tags.allow_nan else True
        return validate_data(self, X, y, dtype=np.float64, ensure_all_finite=finite, **options)

    def _inputs(self, X: Any) -> Inputs:
        """x, y and mask of rows that the fitted model is applied to."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return as_inputs(self.model_, X.reshape(len(X), *self.model_.event_shape))

    @contextmanager
    def _evaluating(self, seed: int) -> Iterator[None]:
        with _LOCK, torch.no_grad(), evaluating(self.model_, seed), pyro.validation_enabled(False):
            yield

    def _draw_seed(self) -> int:
        return int(self.random_state_.randint(2**31 - 1))


class _ScoredMixin:
    """The score of an estimator with `score_samples`."""

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples` over rows, nats."""
        return float(np.mean(self.score_samples(X)))  # type: ignore[attr-defined]


@dataclass(kw_only=True, eq=False, repr=False)
class LatentEstimator(Estimator):
    """Base class of the estimators of latent-variable models: which model it is.

    Args:
        model: a model by its name, or by its name with options, as in `{"vae": {"mask_input": "never"}}`, whose parts
            are replaced by those below that are not None; or a model that is built, of which a copy is trained.
        latent_dim: number of latent dimensions; without any declaration 2.
        prior: p(z).
        likelihood: the family of p(x | z); without any declaration `normal`, whose support are all real numbers.
        posterior: the family of q(z | x).
        encoder: the network from x to the posterior's parameters.
        decoder: the network from z to the likelihood's parameters.
        scaling: how x is scaled for the networks; densities and draws are in the units of X.
        event_shape: shape of one row, as (1, 28, 28) for convolutions; None is the number of columns.
        particles: number of draws from the posterior of each row, of which weighted means are taken.
        **options: those of `Estimator`.
    """

    model: Any = "vae"
    latent_dim: int | None = None
    prior: Any = None
    likelihood: Any = None
    posterior: Any = None
    encoder: Any = None
    decoder: Any = None
    scaling: Any = None
    event_shape: tuple[int, ...] | None = None
    particles: int = 100

    _parts: ClassVar[tuple[str, ...]] = (
        "latent_dim", "prior", "likelihood", "posterior", "encoder", "decoder", "scaling"
    )  # fmt: skip

    def _declared(self, x: Array) -> Any:
        given = {part: value for part in self._parts if (value := getattr(self, part)) is not None}
        if isinstance(self.model, nn.Module):
            if given:
                raise InputError(f"{type(self.model).__name__} is built already; leave {', '.join(given)} out")
            return copy.deepcopy(self.model)
        name, options = next(iter(self.model.items())) if isinstance(self.model, Mapping) else (self.model, None)
        taken = Component(target("model", self.model)).options
        defaults = {part: value for part, value in DEFAULTS.items() if part in taken}
        return {name: defaults | dict(options or {}) | given}

    def score_samples(self, X: Any) -> Array:
        """log p(x) of each row, (rows,), nats: of a density in the units of X, or of a mass.

        It is exact if the model has it in closed form, and else the log of a mean of `particles` importance weights.
        """
        x, _, mask = self._inputs(X)
        with self._evaluating(self._seed):
            exact = self.model_.log_evidence(x, mask)
        if exact is not None:
            return np.asarray(exact)
        return self._by_row(
            lambda *row: log_mean_exp(draw(self.model_, row, self.particles, keep=0).log_weights)[:, None],
            *(x, None, mask),
            draws=self.particles,
        ).squeeze(1)

    def _require(self, model: Any) -> None:
        model.require(Capability.POSTERIOR, "declare a model such as vae, or RBMTransformer in the place of an rbm")

    def _shaped(self, X: Array) -> Array:
        return X if self.event_shape is None else X.reshape(len(X), *self.event_shape)

    def _by_row(self, function: Callable[..., Tensor], *inputs: Tensor | None, draws: int = 1) -> Array:
        """A function of rows, (rows, ...), with the same random numbers for each row.

        Args:
            function: the function of some rows.
            *inputs: what it is applied to, tensors of all rows or None.
            draws: number of draws of each row that it decodes.
        """
        at_least_one(particles=draws)
        found, rows = [], next(len(value) for value in inputs if value is not None)
        at_once = max(1, min(AT_ONCE, MAX_ELEMENTS // (draws * self.model_.event_shape.numel())))
        for start in range(0, rows, at_once):
            part = [None if value is None else value[start : start + at_once] for value in inputs]
            with self._evaluating(self._seed), CommonRandomNumbers(self.model_.plate):
                found.append(function(*part))
        return torch.cat(found).flatten(1).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


@dataclass(kw_only=True, eq=False, repr=False)
class LatentTransformer(ClassNamePrefixFeaturesOutMixin, _ScoredMixin, TransformerMixin, LatentEstimator):
    """The codes E[z | x] of a latent-variable model, its log p(x), and draws from it.

    NaN is missing: it is left out of the likelihood, and codes are given the other entries of a row.

    Args:
        **options: those of `LatentEstimator`.
    """

    def fit(self, X: Any, y: Any = None) -> "LatentTransformer":
        """Fits the model to X (rows, columns); y is not used."""
        x = self._shaped(self._validated(X))
        self._train(x)
        with self._evaluating(self._seed):
            codes = self._codes(*as_inputs(self.model_, x[:1]))
        self._shapes = {site: code.shape[1:] for site, code in codes.items()}
        return self

    def transform(self, X: Any) -> Array:
        """The posterior means of all latents side by side, (rows, latent_dim).

        Those without closed form are means of 100 draws.
        """
        inputs = self._inputs(X)
        return self._by_row(
            lambda *row: torch.cat([code.flatten(1) for code in self._codes(*row).values()], 1), *inputs
        )

    def inverse_transform(self, X: Any) -> Array:
        """E[x | z] at codes (rows, latent_dim), (rows, columns)."""
        check_is_fitted(self)
        codes = torch.from_numpy(check_array(X, dtype=np.float64))
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"codes have {codes.shape[1]} columns, but {type(self).__name__} {self._n_features_out}")

        def means(codes: Tensor) -> Tensor:
            each = codes.split([shape.numel() for shape in self._shapes.values()], 1)
            named = zip(self._shapes.items(), each, strict=True)
            decoded = self.model_.decode({site: code.reshape(-1, *shape) for (site, shape), code in named})
            mean: Tensor = decoded.mean
            return mean

        return self._by_row(means, codes)

    def sample(self, n_samples: int = 1) -> Array:
        """Draws of x, (n_samples, columns), new in every call."""
        check_is_fitted(self)
        with self._evaluating(self._draw_seed()):
            return sample(self.model_, n_samples).flatten(1).numpy()

    def _codes(self, *inputs: Any) -> dict[str, Tensor]:
        return posterior_means(self.model_, inputs, DRAWS)

    @property
    def _n_features_out(self) -> int:
        return sum(shape.numel() for shape in self._shapes.values())


@dataclass(kw_only=True, eq=False, repr=False)
class LatentImputer(OneToOneFeatureMixin, _ScoredMixin, TransformerMixin, LatentEstimator):
    """Fills missing entries, which are NaN, by a latent-variable model of all columns.

    Args:
        sample_posterior: whether entries are draws from p(x_missing | x_observed), new in every call and independent
            between rows, rather than its means.
        **options: those of `LatentEstimator`.
    """

    sample_posterior: bool = False

    def fit(self, X: Any, y: Any = None) -> "LatentImputer":
        """Fits the model to what is observed of X (rows, columns); y is not used."""
        self._train(self._shaped(self._validated(X)))
        return self

    def transform(self, X: Any) -> Array:
        """X with its missing entries filled, (rows, columns)."""
        check_is_fitted(self)
        filled = self._validated(X, reset=False, copy=True)
        gaps = np.isnan(filled)
        rows = gaps.any(1)
        if rows.any():
            x, _, mask = as_inputs(self.model_, self._shaped(filled[rows]))
            if self.sample_posterior:
                with self._evaluating(self._draw_seed()):
                    drawn = impute(self.model_, x, mask, draws=1, particles=self.particles)[0].flatten(1).numpy()
            else:
                drawn = self._by_row(self._expected, x, None, mask, draws=self.particles)
            filled[gaps] = drawn[gaps[rows]]
        return filled

    def _expected(self, *inputs: Any) -> Tensor:
        """The mean of E[x | z] over weighted draws of z given what is observed of x."""
        with self.model_.given(self.model_.global_draw(inputs)):
            log_weights, latents = weighted_draws(self.model_, inputs, self.particles)
            means = decoded(self.model_, latents, None, log_weights.shape).mean
        return torch.einsum("kn,kn...->n...", log_weights.softmax(0), means)


@dataclass(kw_only=True, eq=False, repr=False)
class LatentClassifier(ClassifierMixin, LatentEstimator):
    """A classifier that also learns from rows without a label, by a model of x whose label is a latent.

    Unknown labels are -1, also among words, as in scikit-learn. Where fewer than two classes would be left, -1 is one.

    Args:
        model: as in `LatentEstimator`, a model that infers the label.
        classifier: the network from x to the classes.
        classifier_weight: factor of log q(y | x) of known labels in training.
        labelled_share: rows with a label are repeated until they are this share of the training data; None: never.
        **options: those of `LatentEstimator`.

    Attributes:
        classes_: the classes, in sorted order.
    """

    model: Any = "semi_supervised_vae"
    classifier: Any = None
    classifier_weight: float | None = None
    labelled_share: float | None = None

    _parts: ClassVar[tuple[str, ...]] = (*LatentEstimator._parts, "classifier", "classifier_weight")

    def _require(self, model: Any) -> None:
        super()._require(model)
        if model.label_site is None:
            raise InputError(f"{type(model).__name__} infers no label; declare semi_supervised_vae")

    def fit(self, X: Any, y: Any) -> "LatentClassifier":
        """Fits the model to X (rows, columns) and labels (rows,), -1 where unknown."""
        X, y = self._validated(X, y)
        if any(label is None for label in y):
            raise InputError("y holds None; an unknown label is -1")
        unknown = np.array([str(label) in ("-1", "-1.0") for label in y])
        unknown &= len({*y[~unknown]}) > 1
        known = np.array(y[~unknown].tolist())
        check_classification_targets(known)
        codes = np.full(len(y), -1)
        self.classes_, codes[~unknown] = np.unique(known, return_inverse=True)
        self._train(self._shaped(X), codes, classes=len(self.classes_), labelled_share=self.labelled_share)
        return self

    def predict_proba(self, X: Any) -> Array:
        """q(y | x), (rows, classes)."""
        inputs = self._inputs(X)
        return self._by_row(lambda *row: posterior_means(self.model_, row, 1)[self.model_.label_site], *inputs)

    def predict(self, X: Any) -> Array:
        """The most probable class of each row, (rows,)."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(1)])


@dataclass(kw_only=True, eq=False, repr=False)
class RBMTransformer(ClassNamePrefixFeaturesOutMixin, _ScoredMixin, TransformerMixin, Estimator):
    """The hidden units of a restricted Boltzmann machine, p(h = 1 | x), as scikit-learn's `BernoulliRBM`.

    Args:
        n_components: number of hidden units.
        visible: the visible units; "auto" is `bernoulli` if X holds only 0 and 1, and else `normal`.
        **options: those of `Estimator`.
    """

    n_components: int = 16
    visible: Any = "auto"

    _default_objective: ClassVar[str] = "pcd"

    def fit(self, X: Any, y: Any = None) -> "RBMTransformer":
        """Fits the machine to X (rows, columns); y is not used."""
        self._train(self._validated(X))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> "RBMTransformer":
        """Goes on training the machine for an epoch of X (rows, columns)."""
        self._train(self._validated(X, reset=not hasattr(self, "model_")), epochs=1)
        return self

    def transform(self, X: Any) -> Array:
        """p(h = 1 | x), (rows, n_components)."""
        x, _, _ = self._inputs(X)
        return np.asarray(self.model_.encode(x).detach())

    @torch.no_grad()
    def score_samples(self, X: Any) -> Array:
        """`score_kind_` of each row, (rows,), nats: of a density in the units of X, or of a mass.

        Raises:
            InputError: log Z cannot be summed, and X has no pseudo-likelihood, since it is real.
        """
        x, _, _ = self._inputs(X)
        if self.score_kind_ == "log-likelihood":
            return np.asarray(self.model_.log_prob(x))
        if self.model_.levels is None:
            raise InputError(
                f"log Z of {self.n_components} hidden units and real x cannot be summed, and real x has no "
                f"pseudo-likelihood; give n_components of at most {EXACT}, or estimate log Z by pyrolatent.evaluate"
            )
        return np.asarray(pseudo_likelihood(self.model_, x))

    @property
    def score_kind_(self) -> str:
        """What `score_samples` is: the exact "log-likelihood" if log Z can be summed, else the "pseudo-likelihood"."""
        check_is_fitted(self)
        return "log-likelihood" if self.model_.tractable else "pseudo-likelihood"

    def gibbs(self, X: Any) -> Array:
        """Draws h ~ p(h | x), then x ~ p(x | h), from each row, (rows, columns); new in every call."""
        (x, _, _), model = self._inputs(X), self.model_
        with self._evaluating(self._draw_seed()):
            return np.asarray(model.visible(model.gibbs(model.state(x))))

    def _declared(self, x: Array) -> Any:
        of_data = "bernoulli" if np.isin(x, (0, 1)).all() else "normal"
        return {"rbm": {"hidden": self.n_components, "visible": of_data if self.visible == "auto" else self.visible}}

    @property
    def _n_features_out(self) -> int:
        return len(self.model_.hidden_bias)
