"""Classifier two-sample tests on pairs: a classifier is trained on half of the pairs and tested on the other half."""

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, from_numpy

from pyrolatent.checks.exchangeability import sign_flip_test

COMPONENTS = 40
"""Number of principal components whose products enter the logistic regression."""


def paired_c2st(one: Tensor, other: Tensor, *, seed: int = 0) -> tuple[float, float, Any]:
    """Tests whether a classifier distinguishes the members of pairs (Lopez-Paz and Oquab 2017, 1610.06545).

    The classifier averages a logistic regression on all products of two dimensions, which detects means, scales and
    correlations, and boosted trees, which detect the rest. It is trained on one half of the pairs. The p-value is that
    of the mean difference of its log-odds in the other half, under random exchanges within pairs.

    Args:
        one: (n, dimensions).
        other: (n, dimensions), the partners.
        seed: seed of the classifier and of the split into halves.

    Returns:
        The p-value, the accuracy in the second half, and the classifier, whose `predict_proba` takes (m, dimensions).
    """
    first, second = (values.double().cpu().numpy() for values in (one, other))
    learnt, held = np.array_split(np.random.default_rng(seed).permutation(len(first)), 2)
    rows = np.concatenate([first[learnt], second[learnt]])
    kept = min(COMPONENTS, *rows.shape)
    regression = make_pipeline(PCA(kept), PolynomialFeatures(2), LogisticRegression(C=0.1, max_iter=500))
    trees = HistGradientBoostingClassifier(max_depth=3, learning_rate=0.05, max_iter=60, random_state=seed % 2**32)
    both = VotingClassifier([("regression", regression), ("trees", trees)], voting="soft")
    classifier = make_pipeline(StandardScaler(), both).fit(rows, np.repeat([1, 0], len(learnt)))
    log_odds = []
    for values in (first, second):
        given = classifier.predict_proba(values[held]).clip(1e-12, 1)
        log_odds.append(np.log(given[:, 1] / given[:, 0]))
    accuracy = (np.mean(log_odds[0] > 0) + np.mean(log_odds[1] <= 0)) / 2
    return sign_flip_test(from_numpy(log_odds[0] - log_odds[1])), float(accuracy), classifier
