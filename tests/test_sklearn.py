"""Estimators of scikit-learn: its own checks, and what they compute held against closed forms and quadrature."""

import copy
import pickle
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from joblib import Parallel, delayed
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyrolatent import VAE, InputError
from pyrolatent.sklearn import LatentClassifier, LatentImputer, LatentTransformer, RBMTransformer

SMALL = {"mlp": {"hidden": [8]}}
NETWORKS: dict[str, Any] = {"encoder": SMALL, "decoder": SMALL}
NEVER = {"compile": "never"}
GAUSSIAN = {"linear_gaussian": {"latent_dim": 2, "noise": "diagonal"}}
ESTIMATORS = (LatentTransformer, LatentImputer, LatentClassifier, RBMTransformer)


def small(cls: Any, **options: Any) -> Any:
    """An estimator of small networks that trains for a few epochs."""
    fast = {"max_iter": 2, "settings": NEVER, "random_state": 0}
    if cls is LatentClassifier:
        fast |= {"classifier": {"mlp": {"hidden": []}}, "max_iter": 5, "learning_rate": 0.1}
    return cls(**(fast | (NETWORKS if cls is not RBMTransformer else {}) | options))


@parametrize_with_checks([small(cls, random_state=None) for cls in ESTIMATORS])
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([cls() for cls in ESTIMATORS])
def test_checks_of_scikit_learn_with_defaults(estimator: Any, check: Any) -> None:
    check(estimator)


def gaussian(rows: int = 300, seed: int = 0) -> np.ndarray:
    """Five columns of two factors, in units of 1 to 100."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(rows, 2))
    x = z @ np.array([[1.0, 0.5, 0.0, -1.0, 0.3], [0.0, 1.0, 1.0, 0.5, -0.4]]) + 0.4 * random.normal(size=(rows, 5))
    return x * np.array([1.0, 10.0, 0.1, 100.0, 1.0]) + 3


def normal_of(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the covariance of x under a linear Gaussian model."""
    weight, mean, scale = (value.detach().numpy() for value in model.likelihood.parameters_flat())
    return mean, weight @ weight.T + np.diag(scale**2)


@pytest.fixture(scope="module")
def linear() -> LatentTransformer:
    """A linear Gaussian model at its maximum likelihood."""
    return LatentTransformer(model=GAUSSIAN, objective="em", max_iter=200).fit(gaussian())


def test_log_p_of_a_linear_model_is_the_closed_form_and_that_of_factor_analysis(linear: LatentTransformer) -> None:
    x = gaussian(100, 1)
    truth = multivariate_normal(*normal_of(linear.model_)).logpdf(x)
    np.testing.assert_allclose(linear.score_samples(x), truth, rtol=1e-9)
    random = np.random.default_rng(0)
    many = random.normal(size=(500, 2)) @ random.normal(size=(2, 12)) + random.normal(size=(500, 12))
    ours = LatentTransformer(model=GAUSSIAN, objective="em", max_iter=200).fit(many)
    anchor = FactorAnalysis(2, tol=1e-8, max_iter=10000, svd_method="lapack").fit(many)
    np.testing.assert_allclose(ours.score_samples(many), anchor.score_samples(many), atol=0.01)


def test_codes_of_a_linear_model_are_those_of_the_closed_form(linear: LatentTransformer) -> None:
    x = gaussian(20, 1)
    weight, mean, scale = (value.detach().numpy() for value in linear.model_.likelihood.parameters_flat())
    precision = np.eye(2) + weight.T @ (weight / scale[:, None] ** 2)
    truth = np.linalg.solve(precision, weight.T @ ((x - mean) / scale**2).T).T
    np.testing.assert_allclose(linear.transform(x), truth, rtol=1e-9)
    np.testing.assert_allclose(linear.inverse_transform(truth), truth @ weight.T + mean, rtol=1e-9)


def test_log_p_of_a_vae_is_the_integral_over_its_latent_in_the_units_of_x() -> None:
    x = gaussian()
    one = small(LatentTransformer, latent_dim=1, particles=5000, max_iter=30, learning_rate=0.02).fit(x)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    with torch.no_grad():
        log_p = one.model_.decode(z[:, None, None].expand(-1, 20, 1)).log_prob(torch.from_numpy(x[:20]))
        log_p = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, None]
        truth = log_p.logsumexp(0) + (z[1] - z[0]).log()
    np.testing.assert_allclose(one.score_samples(x[:20]), truth, atol=0.1)
    units = np.array([10.0, 0.5, 2.0, 1e4, 1.0])
    one, other = (clone(one).set_params(max_iter=2).fit(data) for data in (x, x * units))  # of the same weights
    # Up to min_scale, which is in the units of x.
    expected = one.score_samples(x[:20]) - np.log(units).sum()
    np.testing.assert_allclose(
        other.score_samples(x[:20] * units), expected, atol=0.05
    )  # min_scale is in the units of x


PARTS = [
    {},
    {"posterior": "iaf"},
    {"prior": "gamma", "posterior": "gamma"},
    {"posterior": "student_t", "likelihood": "student_t"},
    {"prior": "mixture", "posterior": "multivariate_normal"},
    {"prior": "bernoulli", "posterior": "bernoulli", "objective": "rws"},
    {"prior": "categorical", "posterior": "one_hot_categorical", "objective": "rws"},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_the_result_of_a_row_does_not_depend_on_the_others(parts: dict[str, Any]) -> None:
    x = gaussian(60)
    one, imputer = small(LatentTransformer, **parts).fit(x), small(LatentImputer, **parts).fit(x)
    missing = np.where(np.random.default_rng(2).random(x.shape) < 0.3, np.nan, x)
    for function, rows in [(one.transform, x), (one.score_samples, x), (one.score_samples, missing),
                           (imputer.transform, missing)]:  # fmt: skip
        whole, order = function(rows), np.random.default_rng(1).permutation(60)
        for part in (order, order[:7], order[:1]):
            np.testing.assert_allclose(function(rows[part]), whole[part], rtol=1e-9)


def test_a_model_with_several_latents_has_their_codes_side_by_side() -> None:
    x = gaussian(40)
    deep = {"hierarchical_vae": {"latent_dims": [3, 2], "encoder": SMALL, "decoder": SMALL}}
    one = small(LatentTransformer, model=deep, encoder=None, decoder=None).fit(x)
    codes = one.transform(x)
    assert codes.shape == (40, 5)
    np.testing.assert_allclose(one.transform(x[:3]), codes[:3], rtol=1e-9)
    assert one.inverse_transform(codes).shape == x.shape
    assert one.score_samples(x).shape == (40,)


def test_missing_entries_are_left_out_of_log_p(linear: LatentTransformer) -> None:
    x = gaussian(5, 1)
    x[:, 1:3] = np.nan
    mean, covariance = normal_of(linear.model_)
    seen = [0, 3, 4]
    truth = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(x[:, seen])
    np.testing.assert_allclose(linear.score_samples(x), truth, rtol=1e-9)


def test_missing_entries_are_filled_by_their_mean_given_the_others() -> None:
    x = gaussian(50, 1)
    imputer = LatentImputer(model=GAUSSIAN, objective="em", max_iter=200, particles=5000).fit(gaussian())
    mean, covariance = normal_of(imputer.model_)
    gone, seen = [1, 2], [0, 3, 4]
    missing = x.copy()
    missing[:, gone] = np.nan
    gain = covariance[np.ix_(gone, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    truth = mean[gone] + (x[:, seen] - mean[seen]) @ gain.T
    spread = np.sqrt(np.diag(covariance[np.ix_(gone, gone)] - gain @ covariance[np.ix_(seen, gone)]))
    filled = imputer.transform(missing)
    assert (np.abs(filled[:, gone] - truth) < 4 * spread / np.sqrt(5000)).all()
    np.testing.assert_array_equal(filled[:, seen], x[:, seen])
    np.testing.assert_array_equal(missing[:, seen], x[:, seen])
    assert np.isnan(missing[:, gone]).all()

    imputer.set_params(sample_posterior=True, particles=1000)
    draws = np.stack([imputer.transform(missing) for _ in range(20)])
    deviations = (draws[:, :, gone] - truth) / spread
    for of_column in deviations.reshape(-1, 2).T:
        assert abs(of_column.mean()) < 4 / np.sqrt(1000)
        assert abs(of_column.std() - 1) < 4 / np.sqrt(2000)


def test_labels_may_be_words_and_unknown() -> None:
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)[y]
    few = names.copy()
    few[np.random.default_rng(0).random(150) > 0.2] = -1
    one = small(LatentClassifier, max_iter=60, classifier=SMALL, labelled_share=0.5).fit(x, few)
    assert one.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert one.score(x, names) > 0.85
    np.testing.assert_allclose(one.predict_proba(x).sum(1), 1)
    written = clone(one).fit(x, few.astype(str))
    np.testing.assert_array_equal(written.predict_proba(x), one.predict_proba(x))
    assert small(LatentClassifier).fit(x[:100], np.where(y[:100] > 0, 1, -1)).classes_.tolist() == [-1, 1]


def test_hidden_units_and_log_p_of_an_rbm_are_those_of_its_parameters() -> None:
    x = (load_digits().data[:200, 20:28] > 7).astype(float)
    rbm = small(RBMTransformer, n_components=3).fit(x)
    w, b, c = (getattr(rbm.model_, name).detach().numpy() for name in ("weight", "visible_bias", "hidden_bias"))
    np.testing.assert_allclose(rbm.transform(x), 1 / (1 + np.exp(-(x @ w + c))), rtol=1e-9)

    def score(v: np.ndarray) -> np.ndarray:
        return np.asarray(v @ b + np.logaddexp(0, v @ w + c).sum(1))

    states = (np.arange(2**8)[:, None] >> np.arange(8) & 1).astype(float)
    assert rbm.score_kind_ == "log-likelihood"
    np.testing.assert_allclose(rbm.score_samples(x), score(x) - np.logaddexp.reduce(score(states)), rtol=1e-9)
    moved = rbm.gibbs(x)
    assert ((moved == 0) | (moved == 1)).all()
    assert (moved != rbm.gibbs(x)).any()
    before = rbm.score(x)
    for _ in range(30):
        rbm.partial_fit(x)
    assert rbm.score(x) > before


def test_an_rbm_without_a_sum_of_log_z_has_a_pseudo_likelihood_of_discrete_x_alone() -> None:
    x = np.random.default_rng(0).normal(size=(40, 21))
    bits = small(RBMTransformer, n_components=21).fit(x > 0)
    w, b, c = (getattr(bits.model_, name).detach().numpy() for name in ("weight", "visible_bias", "hidden_bias"))
    v = (x[:3] > 0).astype(float)
    truth = np.zeros(3)
    for i in range(21):
        flipped = v.copy()
        flipped[:, i] = 1 - v[:, i]
        own, other = (u @ b + np.logaddexp(0, u @ w + c).sum(1) for u in (v, flipped))
        truth += own - np.logaddexp(own, other)
    assert bits.score_kind_ == "pseudo-likelihood"
    np.testing.assert_allclose(bits.score_samples(v), truth, rtol=1e-9)
    with pytest.raises(InputError, match="n_components of at most 20") as error:
        small(RBMTransformer, n_components=21).fit(x).score(x)
    assert "\n" not in str(error.value)


def fitted(cls: Any, **options: Any) -> tuple[Any, Any]:
    """An estimator fitted to iris, and the main function of it."""
    x, y = load_iris(return_X_y=True)
    one = small(cls, **options).fit(x, y)
    return one, one.predict_proba if cls is LatentClassifier else one.transform


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_a_seed_fixes_everything_and_copies_compute_the_same(cls: Any) -> None:
    x = load_iris().data.copy()
    x[::7, 1] = np.nan if cls is not RBMTransformer else 0
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    pyro.get_param_store()["mine"] = torch.ones(3)
    (one, function), (_, again) = fitted(cls), fitted(cls)
    results = function(x)
    np.testing.assert_array_equal(again(x), results)
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        function = other.predict_proba if cls is LatentClassifier else other.transform
        np.testing.assert_array_equal(function(x), results)
    if hasattr(one, "score_samples"):
        copied = pickle.loads(pickle.dumps(one))
        np.testing.assert_array_equal(copied.score_samples(x), one.score_samples(x))
    if hasattr(one, "sample"):
        assert (one.sample(5) != one.sample(5)).all()
    torch.testing.assert_close(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert list(pyro.get_param_store().keys()) == ["mine"]


@pytest.mark.parametrize("jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_parts_are_searched_over(jobs: int | None) -> None:
    x, y = load_iris(return_X_y=True)
    grid = {"prior": ["normal", "mixture"], "likelihood": ["normal", "laplace"]}
    search = GridSearchCV(small(LatentTransformer), grid, cv=2, n_jobs=jobs).fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(x).shape == (150, 2)
    pipeline = make_pipeline(small(LatentTransformer), LogisticRegression())
    nested = GridSearchCV(pipeline, {"latenttransformer__latent_dim": [1, 3]}, cv=2).fit(x, y)
    assert nested.best_score_ > 0.5


def test_frames_keep_their_names() -> None:
    x = load_iris(as_frame=True).data
    codes = small(LatentTransformer).set_output(transform="pandas").fit(x).transform(x)
    assert codes.columns.tolist() == ["latenttransformer0", "latenttransformer1"]
    by_column = {"columns": dict.fromkeys(x.columns, "normal")}
    imputer = small(LatentImputer, likelihood=by_column).set_output(transform="pandas").fit(x)
    assert imputer.transform(x.mask(x > 6)).columns.tolist() == x.columns.tolist()
    with pytest.raises(ValueError, match="feature names"):
        imputer.transform(x.rename(columns=str.upper))


def test_training_stops_early_on_rows_that_are_held_out() -> None:
    x = gaussian(100)
    stopped = small(LatentTransformer, early_stopping=True, n_iter_no_change=2, max_iter=200, learning_rate=0.1).fit(x)
    assert stopped.n_iter_ == len(stopped.loss_curve_) == len(stopped.validation_scores_) < 200
    more = clone(stopped).set_params(warm_start=True, early_stopping=False, max_iter=2).fit(x)
    before = more.score(x)
    assert more.validation_scores_ is None
    assert more.set_params(max_iter=30).fit(x).score(x) > before


def test_warnings_and_errors_speak_of_the_parameters() -> None:
    x = gaussian(100)
    with pytest.warns(ConvergenceWarning, match="set max_iter=40") as caught:
        small(LatentTransformer, max_iter=20).fit(x)
    assert caught[0].filename == __file__
    with pytest.raises(InputError, match="did you mean 'mixture'") as error:
        small(LatentTransformer, prior="mixtur").fit(x)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no option 'latent_dim'"):
        small(LatentTransformer, model="discrete_vae", latent_dim=3).fit(x)
    with pytest.raises(InputError, match="RBMTransformer"):
        LatentTransformer(model={"rbm": {"hidden": 3}}, objective="pcd", max_iter=1).fit(x)
    with pytest.raises(InputError, match="infers no label"):
        LatentClassifier(model="vae", max_iter=1, classifier=None).fit(x, np.arange(100) % 2)


def test_threads_do_not_disturb_each_other() -> None:
    x = gaussian(30)
    work = [
        delayed(lambda seed: small(LatentTransformer, random_state=seed).fit(x).score_samples(x))(i) for i in range(4)
    ]
    for seed, scores in enumerate(Parallel(4, backend="threading")(work)):
        np.testing.assert_array_equal(scores, small(LatentTransformer, random_state=seed).fit(x).score_samples(x))


def test_a_model_that_is_built_is_copied() -> None:
    x = gaussian(30)
    model = VAE((5,), latent_dim=3, likelihood="normal", encoder=SMALL, decoder=SMALL)
    before = copy.deepcopy(model.state_dict())
    one = LatentTransformer(model=model, max_iter=2, settings=NEVER).fit(x)
    assert one.transform(x).shape == (30, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="leave prior out"):
        clone(one).set_params(prior="mixture").fit(x)


def test_an_imputer_and_a_classifier_score_rows_too() -> None:
    x, y = gaussian(40), np.arange(40) % 2
    assert np.isfinite(cross_val_score(small(LatentImputer), x, cv=2)).all()
    scores = small(LatentClassifier).fit(x, y).score_samples(x)
    assert scores.shape == (40,)
    assert np.isfinite(scores).all()


def test_events_may_have_a_shape() -> None:
    x = load_digits().data[:40]
    conv = {"conv": {"channels": [4]}}
    one = small(LatentTransformer, event_shape=(1, 8, 8), encoder=conv, decoder=conv).fit(x)
    assert one.transform(x).shape == (40, 2)
    assert one.inverse_transform(one.transform(x)).shape == one.sample(40).shape == x.shape
