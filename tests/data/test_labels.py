"""Labels: a class has the same code in every part, its word is kept, and a blank is unknown."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pyrolatent import ConditionalVAE, InputError, Run, SemiSupervisedVAE, cli, fit, load_data
from pyrolatent.data.splits import Data

PARTS = ("train", "validation", "test")
X = np.arange(60.0)[:, None] + [0, 0.5]
SMALL: dict[str, Any] = {
    "encoder": {"mlp": {"hidden": [4]}},
    "decoder": {"mlp": {"hidden": [4]}},
    "likelihood": "normal",
}


def words(data: Data) -> list[str | None]:
    """The word of the label of each row of X, None where unknown."""
    assert data.classes is not None
    found: dict[int, str | None] = {}
    for part in PARTS:
        batch = getattr(data, part).batch(slice(None))
        assert batch.y is not None
        for x, y in zip(batch.x[:, 0].tolist(), batch.y.tolist(), strict=True):
            found[int(x)] = None if y < 0 else data.classes[y]
    return [found[row] for row in sorted(found)]


TOWNS = ["Rome", "Bern", "Oslo"] * 20
GAPS = ["Rome", None, "Oslo"] * 20


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (np.array(TOWNS), ("Bern", "Oslo", "Rome"), TOWNS),
        (TOWNS, ("Bern", "Oslo", "Rome"), TOWNS),
        (GAPS, ("Oslo", "Rome"), GAPS),
        (pd.Series(GAPS), ("Oslo", "Rome"), GAPS),
        (["Rome", " ", "Oslo"] * 20, ("Oslo", "Rome"), GAPS),
        ([7, 0, 0] * 20, ("0", "7"), ["7", "0", "0"] * 20),
        ([10, 9, 100] * 20, ("9", "10", "100"), ["10", "9", "100"] * 20),
        ([7, -1, 0] * 20, ("0", "7"), ["7", None, "0"] * 20),
        ([7.0, np.nan, 0.0] * 20, ("0", "7"), ["7", None, "0"] * 20),
        ([10**9, 3, 3] * 20, ("3", "1000000000"), ["1000000000", "3", "3"] * 20),
        ([True, False, True] * 20, ("False", "True"), ["True", "False", "True"] * 20),
        (np.array([7, None, 0] * 20, object), ("0", "7"), ["7", None, "0"] * 20),
    ],
)
def test_classes_are_those_that_occur_in_sorted_order(labels: Any, classes: tuple[str, ...], expected: Any) -> None:
    data = load_data(X, labels=labels)
    assert data.classes == classes
    assert data.label_dim == len(classes)
    assert words(data) == expected


def test_a_column_of_labels_has_the_same_codes_as_an_array(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(town=GAPS)
    frame.to_csv(tmp_path / "towns.csv", index=False)
    for source in (frame, tmp_path / "towns.csv"):
        data = load_data(source, labels="town")
        assert data.classes == ("Oslo", "Rome")
        assert words(data) == GAPS
        assert "labels: Oslo 20, Rome 20, unknown 20" in data.describe()
    with pytest.raises(InputError, match=r"there is no label column 'twon'; .*did you mean 'town'"):
        load_data(frame, labels="twon")


@pytest.mark.parametrize(
    ("labels", "width"), [(np.linspace(0, 1, 60), 1), (np.ones((60, 3)), 3), (np.ones((60, 3), int), 3)]
)
def test_real_numbers_are_conditions(labels: Any, width: int) -> None:
    data = load_data(X, labels=labels)
    assert data.classes is None
    assert data.label_dim == width
    assert data.train.y is not None
    assert data.train.y.is_floating_point()


def test_the_kind_of_a_column_of_labels_decides() -> None:
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(age=np.arange(60) % 30 + 20, town=TOWNS)
    whole = load_data(frame, labels="age", kinds={"age": "count"})
    assert whole.classes is None
    assert whole.label_dim == 1
    assert load_data(frame, labels="age").label_dim == 30
    classes = load_data(frame.astype({"age": float}), labels="age", kinds={"age": "category"})
    assert classes.label_dim == 30
    assert classes.columns is not None
    assert classes.columns[2].categories == ("Bern", "Oslo", "Rome")
    with pytest.raises(InputError, match="labels are words, which are no numbers of kind real"):
        load_data(frame, labels="town", kinds={"town": "real"})
    with pytest.raises(InputError, match=r"there is no column 'twon', whose kind .*'town'"):
        load_data(frame, labels="town", kinds={"twon": "real"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.r_[np.nan, np.linspace(0, 1, 59)]}, "1 label values are NaN .*a real number cannot be unknown"),
        ({"labels": np.arange(60.0)}, "all whole numbers; give integers if they are classes"),
        ({"labels": TOWNS, "classes": 2}, r"there are 3 classes \(Bern, Oslo, Rome, ...\), but classes was 2"),
        ({"labels": np.linspace(0, 1, 60), "classes": 2}, "classes was 2, but the labels are real numbers"),
        ({"classes": 2}, "array has no labels, but classes was 2"),
        ({"stratified": True}, "array has no classes by which parts could be stratified"),
        ({"labels": np.ones(60, complex)}, "labels are complex128"),
        ({"labels": np.array(["a", 1] * 30, object)}, "'labels' holds int, str, but numbers or words are expected"),
    ],
)
def test_labels_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(X, **options)
    assert "\n" not in str(caught.value)


def test_a_declared_number_of_classes_keeps_numbers_and_names_the_rest() -> None:
    data = load_data(X, labels=[7, 0, 3] * 20, classes=10)
    assert data.classes == tuple("0123456789")
    assert words(data) == ["7", "0", "3"] * 20
    assert load_data(X, labels=TOWNS, classes=4).classes == ("Bern", "Oslo", "Rome", "3")


@pytest.mark.parametrize("labels", [[-1] * 60, [np.nan] * 60, [None] * 60, [""] * 60])
def test_unknown_labels_train_with_a_declared_number_of_classes(labels: Any) -> None:
    data = load_data(X, labels=labels, classes=3)
    assert data.label_dim == 3
    model = SemiSupervisedVAE(data.event_shape, data.label_dim, latent_dim=1, **SMALL)
    assert np.isfinite(fit(model, data, epochs=1, progress=False).history[-1]["train_loss"])


@pytest.mark.parametrize(("part", "row"), [("training", 20), ("validation", 0), ("test", 10)])
def test_a_model_that_needs_every_label_says_which_does_not(part: str, row: int) -> None:
    labels = np.arange(60) % 3
    labels[row] = -1
    data = load_data(X, labels=labels, validation=[0, 1, 2], test=[10, 11, 12])
    model = ConditionalVAE(data.event_shape, data.label_dim, latent_dim=1, **SMALL)
    with pytest.raises(InputError, match=f"every label, but 1 {part} labels are unknown; declare semi_supervised_vae"):
        fit(model, data, epochs=1, progress=False)
    with pytest.raises(
        InputError, match="-1 is unknown, which ConditionalVAE does not take: declare semi_supervised_vae"
    ):
        model.encode(X[:2], [-1, 0])


@pytest.mark.parametrize("counts", [(50, 30, 20), (97, 2, 1), (34, 33, 33)])
def test_parts_hold_each_class_in_proportion(counts: tuple[int, ...]) -> None:
    """To within one datapoint; the number of datapoints of a part is that of its fraction."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts))
    x = np.arange(100.0)[:, None]
    data = load_data(x, labels=labels)
    assert [len(split) for split in data.splits] == [81, 9, 10]
    for split, fraction in ((data.test, 0.1), (data.validation, 0.09), (data.train, 0.81)):
        assert split.y is not None
        assert (torch.bincount(split.y, minlength=3) - fraction * torch.tensor(counts)).abs().max() <= 2
    moved = load_data(x, labels=labels, seed=1)
    assert not torch.equal(moved.test.x, data.test.x)
    plain = load_data(x, labels=labels, stratified=False)
    assert torch.equal(plain.test.x, load_data(x).test.x)
    assert data.declaration is None
    assert sorted(torch.cat([split.x for split in data.splits]).flatten().tolist()) == list(range(100))


def test_every_row_is_as_likely_to_be_held_out() -> None:
    labels = np.repeat([0, 1], [30, 10])
    times = np.zeros(40)
    for seed in range(400):
        held = load_data(np.arange(40.0)[:, None], labels=labels, test=0.25, seed=seed).test.x
        times[held.flatten().long().numpy()] += 1
    assert np.abs(times - 100).max() <= 5 * (400 * 0.25 * 0.75) ** 0.5


def test_commands_take_words_and_functions_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for column, word, code in (("n", "7", 2), ("town", "Oslo", 1)):
        of_rows = TOWNS if column == "town" else [7, 0, 3] * 20
        pd.DataFrame(X, columns=["a", "b"]).assign(**{column: of_rows}).to_csv("x.csv", index=False)
        data = load_data("x.csv", labels=column)
        model = ConditionalVAE(data.event_shape, data.label_dim, latent_dim=1, likelihood={"columns": "auto"})
        run = Run.save(column, fit(model, data, epochs=1, progress=False))
        assert Run.load(column).label(word) == code
        other = "5" if column == "n" else "Osol"
        with pytest.raises(InputError, match=f"label was '{other}'; ConditionalVAE takes a class: .*{word}"):
            run.label(other)
        result = CliRunner().invoke(cli.app, ["sample", column, "-n", "2", "--label", word])
        assert result.exit_code == 0, result.output


def test_older_runs_keep_their_parts_and_their_classes(tmp_path: Path) -> None:
    """They had as many classes as their largest label says, and parts without regard to classes."""
    path = tmp_path / "x.npz"
    np.savez(path, x=X, y=[7, 0, 3] * 20)
    older = load_data(path, classes=8, stratified=False)
    assert older.label_dim == 8
    model = ConditionalVAE(older.event_shape, older.label_dim, latent_dim=1, likelihood="normal")
    run = Run.save(tmp_path / "run", fit(model, older, epochs=1, progress=False))
    run.declaration["data"] = str(path)
    del run.record["data"]["columns"]
    assert run.load_data().record == older.record


def test_labels_of_one_class_are_said() -> None:
    with pytest.warns(UserWarning, match="all known labels are '1', and 30 are unknown"):
        load_data(X, labels=[-1, 1] * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_data(X, labels=["-1", "1"] * 30).classes == ("-1", "1")
        load_data(X, labels=[-1, 1] * 30, classes=2)
