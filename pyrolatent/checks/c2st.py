"""Classifier two-sample tests of pairs: what a classifier learnt on half of them says of the other half."""

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, from_numpy

from pyrolatent.checks.exchangeability import sign_flip_test


def paired_c2st(one: Tensor, other: Tensor, *, seed: int = 0) -> tuple[float, float, object]:
    """Whether a classifier tells the members of pairs apart (Lopez-Paz and Oquab 2017, 1610.06545).

    It learns from one half of the pairs; p is that of the mean difference of its log-odds in the other half, held
    against random exchanges within pairs.

    Args:
        one: (n, dimensions).
        other: (n, dimensions), the partners.
        seed: of the classifier and of the halves.

    Returns:
        The p-value, the accuracy in the second half, and the classifier, whose `predict_proba` takes (m, dimensions).
    """
    first, second = (values.double().cpu().numpy() for values in (one, other))
    learnt, held = np.array_split(np.random.default_rng(seed).permutation(len(first)), 2)
    classifier = make_pipeline(StandardScaler(), MLPClassifier((64, 64), early_stopping=True, random_state=seed))
    classifier.fit(np.concatenate([first[learnt], second[learnt]]), np.repeat([1, 0], len(learnt)))
    log_odds = []
    for values in (first, second):
        given = classifier.predict_proba(values[held]).clip(1e-12, 1)
        log_odds.append(np.log(given[:, 1] / given[:, 0]))
    accuracy = (np.mean(log_odds[0] > 0) + np.mean(log_odds[1] <= 0)) / 2
    return sign_flip_test(from_numpy(log_odds[0] - log_odds[1])), float(accuracy), classifier
