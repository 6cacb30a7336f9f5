"""Classifier two-sample tests of pairs: what a classifier learnt on half of them says of the other half."""

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
"""Principal components whose products the logistic regression is shown."""


def paired_c2st(one: Tensor, other: Tensor, *, seed: int = 0) -> tuple[float, float, Any]:
    """Whether a classifier tells the members of pairs apart (Lopez-Paz and Oquab 2017, 1610.06545).

    The classifier is the mean of a logistic regression of all products of two dimensions, which sees means, scales and
    correlations, and of boosted trees, which see the rest. It learns from one half of the pairs; p is that of the mean
    difference of its log-odds in the other half, held against random exchanges within pairs.

    Args:
        one: (n, dimensions).
        other: (n, dimensions), the partners.
        seed: of the classifier and of the halves.

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
