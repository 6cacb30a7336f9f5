"""Tables whose columns have families of their own, against closed forms cell by cell and quadrature."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyrolatent as pl
from pyrolatent import InputError
from pyrolatent.checks import Memorisation, PriorPredictive, Tarp
from pyrolatent.inference.weights import weigh
from pyrolatent.models.components.conditional import filled, masked

SMALL: Any = {"encoder": {"mlp": {"hidden": [8]}}, "decoder": {"mlp": {"hidden": [8]}}}
TOWNS = ["Bonn", "Kiel", "Ulm"]


def people(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Columns of every kind, in another order than their kinds; real, positive, count, binary and words."""
    random = np.random.default_rng(seed)
    u = random.normal(size=rows)
    return pd.DataFrame(
        {
            "town": np.array(TOWNS)[np.clip(u + 1.5 + 0.5 * random.normal(size=rows), 0, 2).astype(int)],
            "change": 20 + 30 * u + 5 * random.normal(size=rows),
            "smoker": np.where(u + random.normal(size=rows) > 0, "yes", "no"),
            "visits": random.poisson(3 * np.exp(u / 2)),
            "income": np.exp(9 + u + 0.3 * random.normal(size=rows)),
        }
    )


def data_of(gaps: float = 0.0, rows: int = 400) -> pl.Data:
    table = people(rows)
    if gaps:
        table = table.mask(np.random.default_rng(1).random(table.shape) < gaps)
    return pl.load_data(table)


def model_of(data: pl.Data, columns: Any = "auto", latent_dim: int = 1, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = pl.VAE(data.event_shape, latent_dim=latent_dim, likelihood={"columns": columns}, **SMALL, **options)
    model = model.double()
    model.fit_scaling(data.to("cpu", torch.float64).train.batches(64))
    return model.eval()


def rows_of(data: pl.Data, count: int = 40) -> Any:
    return data.to("cpu", torch.float64).train.batch(slice(0, count))


def by_hand(model: Any, z: Tensor, x: Tensor) -> Tensor:
    """log p of each cell by SciPy, from the outputs of the decoder: (rows, columns)."""
    u = model.likelihood.network(z).detach()
    widths = [part.unconstrained_shape[0] for part in model.likelihood.family.parts]
    given = [part.numpy() for part in u.split(widths, -1)]
    town, change, smoker, visits, income = x.numpy().T
    scalings = model.scaling.parts

    def softplus(value: Any) -> Any:
        return np.logaddexp(0, value)

    logits = given[0] - scipy.special.logsumexp(given[0], axis=1, keepdims=True)
    found = [logits[np.arange(len(x)), town.astype(int)]]
    loc, scale = (scalings[1].loc.item(), scalings[1].scale.item())
    found.append(scipy.stats.norm.logpdf(change, loc + scale * given[1][:, 0], 1e-3 + scale * softplus(given[1][:, 1])))
    found.append(scipy.stats.bernoulli.logpmf(smoker, scipy.special.expit(given[2][:, 0])))
    count, p = softplus(given[3][:, 0]) + 1e-6, scipy.special.expit(given[3][:, 1])
    found.append(scipy.stats.nbinom.logpmf(visits, count, 1 - p))
    loc, scale = (scalings[4].loc.item(), scalings[4].scale.item())
    of_log = scipy.stats.norm.logpdf(
        np.log(income), loc + scale * given[4][:, 0], 1e-3 + scale * softplus(given[4][:, 1])
    )
    found.append(of_log - np.log(income))
    return torch.as_tensor(np.stack(found, 1))


def test_each_cell_has_its_own_closed_form() -> None:
    data = data_of()
    model, x = model_of(data), rows_of(data).x
    z = torch.randn(40, 1).double()
    likelihood = model.decode(z)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((40,), (5,))
    torch.testing.assert_close(likelihood.base_dist.log_prob(x).detach(), by_hand(model, z, x), rtol=1e-7, atol=1e-7)
    mask = torch.rand(x.shape) < 0.6
    part = masked(likelihood, mask).log_prob(filled(torch.where(mask, x, torch.nan), mask, likelihood.support))
    torch.testing.assert_close(part.detach(), (by_hand(model, z, x) * mask).sum(1), rtol=1e-7, atol=1e-7)


def test_draws_and_means_are_those_of_each_column() -> None:
    """20,000 draws within five standard errors of the means; for words, of their probabilities."""
    data = data_of()
    model = model_of(data)
    likelihood = model.decode(torch.randn(3, 1))
    assert not likelihood.has_rsample
    drawn, mean = likelihood.sample(torch.Size([20_000])), likelihood.mean.detach()
    assert likelihood.base_dist.support.check(drawn).all()
    error = 5 * drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - mean).abs() <= error)[:, 1:].all()
    categories = likelihood.base_dist.parts[0]
    for k in range(3):
        share = categories.probs[:, 0, k]
        assert ((drawn[..., 0] == k).double().mean(0) - share).abs().max() < 5 * 0.5 / 20_000**0.5
    assert torch.equal(mean[:, 0], categories.probs[:, 0].argmax(-1).double())
    only_numbers = pl.VAE((2,), latent_dim=1, likelihood={"columns": {"0": "normal", "1": "laplace"}})
    assert only_numbers.decode(torch.zeros(1, 1)).has_rsample


def grid() -> tuple[Tensor, Tensor]:
    z = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    return z.unsqueeze(-1), torch.distributions.Normal(0.0, 1.0).log_prob(z) + math.log(z[1] - z[0])


def evidence(model: Any, x: Tensor, mask: Tensor) -> Tensor:
    """log p(observed cells) by quadrature over z, (rows,)."""
    z, log_weight = grid()
    cells = torch.stack([by_hand(model, z, row.expand(len(z), -1)) for row in x])  # (rows, grid, columns)
    return torch.logsumexp((cells * mask.unsqueeze(1)).sum(-1) + log_weight, 1)


def test_the_evidence_of_what_is_observed_is_that_of_quadrature() -> None:
    """By importance sampling with 20,000 particles, to five of its standard errors; a row may have no cell at all."""
    data = data_of(gaps=0.3)
    model = model_of(data)
    x, _, mask = rows_of(data, 30)
    mask[0] = False
    truth = evidence(model, torch.where(mask, x, 1.0), mask)
    assert truth[0].abs() < 1e-6
    with torch.no_grad():
        found = pl.inference.evidence.importance.score(model, x, None, mask, particles=20_000)
    assert ((found.log_evidence - truth).abs() < 5 * found.mcse + 1e-6).all()


@pytest.mark.slow
def test_missing_words_are_drawn_from_their_posterior() -> None:
    """p(town | the rest) by quadrature, to five standard errors of 2,000 draws and what resampling leaves."""
    data = data_of()
    model = model_of(data)
    for parameter in model.likelihood.parameters():
        parameter.data.mul_(3)
    x = rows_of(data, 2).x
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 0] = False
    joint = torch.stack(
        [evidence(model, x.index_fill(1, torch.tensor([0]), k), ~torch.zeros_like(mask)) for k in range(3)], 1
    )
    truth = joint.softmax(1)
    torch.manual_seed(0)
    drawn = pl.impute(model, x, mask, draws=2000, particles=2000)[..., 0]
    shares = torch.stack([(drawn == k).double().mean(0) for k in range(3)], 1)
    assert (shares - truth).abs().max() < 5 * 0.5 / 2000**0.5 + 0.01
    assert truth.std(0).max() > 0.01


def test_networks_see_categories_one_hot_and_a_gap_once() -> None:
    """Numbers scaled by their column, words one-hot, 0 where missing, and one flag for each missing cell."""
    data = data_of(gaps=0.3)
    model = model_of(data)
    x, _, mask = rows_of(data)
    seen = model.scaling(x, mask)
    assert seen.shape == (40, 7)
    town = torch.nn.functional.one_hot(x[:, 0].long(), 3) * mask[:, :1]
    assert torch.equal(seen[:, :3], town.double())
    train = data.train
    change = train.x[:, 1][train.mask[:, 1]].double()
    expected = (x[:, 1] - change.mean()) / change.std(correction=0) * mask[:, 1]
    torch.testing.assert_close(seen[:, 3], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[:, 4], torch.where(mask[:, 2], x[:, 2], 0.0))
    visits = train.x[:, 3][train.mask[:, 3]].double().log1p()
    torch.testing.assert_close(
        seen[:, 5],
        torch.where(mask[:, 3], (x[:, 3].log1p() - visits.mean()) / visits.std(correction=0), 0.0),
        rtol=1e-5,
        atol=1e-5,
    )
    income = train.x[:, 4][train.mask[:, 4]].double().log()
    torch.testing.assert_close(
        seen[:, 6],
        torch.where(mask[:, 4], (x[:, 4].log() - income.mean()) / income.std(correction=0), 0.0),
        rtol=1e-5,
        atol=1e-5,
    )
    flags = ~model.scaling.seen(mask)
    assert torch.equal(flags.sum(1), (~mask).sum(1))
    assert torch.equal(flags[:, [0, 3, 4, 5, 6]], ~mask)


@pytest.mark.parametrize("objective", ["elbo", "analytic_elbo", "dreg", {"iwae": {"particles": 3}}])
def test_what_stands_behind_a_mask_does_not_matter(objective: Any) -> None:
    """In no bound and no gradient of a training step."""
    data = data_of(gaps=0.3)
    x, _, mask = rows_of(data)
    built = pl.declaration.build("objective", objective)
    found = []
    for filling in (math.nan, 1e9):
        model = model_of(data)
        model.prepare(x, mask)
        torch.manual_seed(1)
        given = torch.where(mask, x, filling)
        loss = built.differentiable_loss(model.generate, model.infer, given, None, mask)
        found.append(
            torch.cat([loss.reshape(1), *(g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()]))])
        )
    assert found[0].isfinite().all()
    assert torch.equal(*found)


def test_a_table_is_trained_saved_evaluated_and_drawn_from(tmp_path: Path) -> None:
    people(300).mask(np.random.default_rng(1).random((300, 5)) < 0.1).to_csv(tmp_path / "people.csv", index=False)
    columns = {
        "town": "categorical",
        "change": {"normal": {"scale": "learned"}},
        "smoker": "bernoulli",
        "visits": {"poisson": {"scaling": "standardise"}},
        "income": {"normal": {"scaling": "log1p"}},
    }
    for name, declared in (("auto", "auto"), ("named", columns)):
        model = {"vae": {"latent_dim": 2, "likelihood": {"columns": declared}, **SMALL}}
        experiment = pl.Experiment(model=model, data=str(tmp_path / "people.csv"), epochs=15)
        run = pl.train(experiment, tmp_path / name, progress=False)
        assert run.history[-1]["validation_elbo"] > run.history[0]["validation_elbo"] + 0.1
        first = run.evaluate(particles=20)
        loaded = pl.Run.load(run.path)
        assert pl.evaluate(loaded.model, run.load_data(), particles=20).log_evidence == first.log_evidence
        drawn = pl.sample(loaded.model, 200)
        assert {*drawn[:, 0].tolist()} <= {0.0, 1.0, 2.0}
        assert (drawn[:, 4] > -1).all()
        assert first.measure.startswith("mixed (density of change, income; mass of the other columns, in the units")


def test_a_model_says_what_was_inferred() -> None:
    printed = str(model_of(data_of()))
    for line in (
        "p(x | z) = 5 columns of MLP",
        "town   ~ Categorical of 3 (Bonn, Kiel, Ulm)",
        "change ~ Normal(loc, scale), networks see x standardised",
        "smoker ~ Bernoulli(logits) (no, yes)",
        "visits ~ NegativeBinomial(total_count, logits), networks see x as log(1 + x), standardised",
        "income ~ Normal(loc, scale), networks see x as log x, standardised",
    ):
        assert line in printed


def test_columns_of_one_declaration_are_one_part() -> None:
    """As many networks' outputs as alone, in the order of the table; learned noise is one number for each column."""
    declared = {"0": {"normal": {"scale": "learned"}}, "1": "poisson", "2": {"normal": {"scale": "learned"}}}
    model = pl.VAE((3,), latent_dim=1, likelihood={"columns": declared}, **SMALL)
    family: Any = model.likelihood.family
    assert len(family.parts) == 2
    assert family.parts[0].learned["scale"].shape == (2,)
    assert family.measure == "mixed (mass of 1; density of the other columns, in the units of the data)"
    x = torch.tensor([[1.0, 3.0, 2.0]])
    p = model.decode(torch.zeros(1, 1))
    mean = p.base_dist.parts[0].loc[0], p.base_dist.parts[1].rate[0]
    torch.testing.assert_close(p.mean[0], torch.stack([mean[0][0], mean[1][0], mean[0][1]]))
    assert p.log_prob(x).isfinite().all()
    alike = pl.VAE((3,), latent_dim=1, likelihood={"columns": dict.fromkeys("012", "poisson")})
    assert alike.likelihood.family.measure == "mass"


TABLE = data_of(rows=60)
GIVEN = {"town": "categorical", "change": "normal", "smoker": "bernoulli", "visits": "poisson", "income": "log_normal"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"town": "categorical"}, "columns has no family for change, smoker, visits, income"),
        ({**GIVEN, "twon": "normal"}, r"there is no column 'twon'.*did you mean 'town'"),
        ({**GIVEN, "town": "normal"}, "column town holds 3 words, which Normal.*declare categorical"),
        ({**GIVEN, "town": {"categorical": {"levels": 4}}}, "column town.*levels 4, but has 3 words"),
        ({**GIVEN, "change": "multivariate_normal"}, r"there is no family 'multivariate_normal'.*columns\.change"),
        ({**GIVEN, "change": {"Delta": {}}}, "there is no family 'Delta'"),
        ({**GIVEN, "change": "categorical"}, "column change: .* needs the option levels"),
        (
            {**GIVEN, "change": {"normal": {"sacle": 1}}},
            r"columns\.change\.normal has no option 'sacle'.*did you mean 'scale'",
        ),
        (
            {**GIVEN, "income": {"log_normal": {"scaling": "log"}}},
            "column income: scaling log does not go with LogNormal",
        ),
        ("all", "likelihood.columns takes auto, or a mapping of names"),
    ],
)
def test_what_is_no_family_of_a_column_is_refused_by_name(columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pl.VAE(TABLE.event_shape, latent_dim=1, likelihood={"columns": columns})


def test_other_refusals() -> None:
    with pytest.raises(
        InputError, match=r"columns: auto infers families from the columns of the data; give data\.event_shape"
    ):
        pl.VAE((5,), latent_dim=1, likelihood={"columns": "auto"})
    with pytest.raises(InputError, match="columns are those of a table"):
        pl.VAE((1, 2, 2), latent_dim=1, likelihood={"columns": "auto"})
    with pytest.raises(InputError, match="each column has a scaling of its own"):
        pl.VAE(TABLE.event_shape, latent_dim=1, likelihood={"columns": "auto"}, scaling="minmax")
    words = pl.VAE(TABLE.event_shape, latent_dim=1, likelihood="normal")
    with pytest.raises(
        InputError, match=r"holds words \(town\), which the normal likelihood takes for numbers; declare"
    ):
        pl.fit(words, TABLE, epochs=1, progress=False)
    counted = {**GIVEN, "change": "negative_binomial"}
    negative = pl.VAE(TABLE.event_shape, latent_dim=1, likelihood={"columns": counted})
    with pytest.raises(InputError, match=r"column change, holds values in \[-.*defined on \{0, 1, 2, \.\.\.\}"):
        pl.fit(negative, TABLE, epochs=1, progress=False)


def test_predictive_checks_know_categories() -> None:
    """Data of the model pass; data with other shares of words fail, by statistics that networks' codes have."""
    data = data_of(rows=1000)
    model = model_of(data, latent_dim=2).float()
    torch.manual_seed(0)
    own = pl.sample(model, 1000)
    frame = pd.DataFrame(own.numpy(), columns=[column.name for column in data.columns])
    kinds = {column.name: column.kind for column in data.columns if column.kind not in ("category", "binary")}

    def with_words(codes: pd.DataFrame) -> pl.Data:
        named = codes.copy()
        named["town"], named["smoker"] = [
            np.array(words)[codes[name].astype(int)] for name, words in (("town", TOWNS), ("smoker", ["no", "yes"]))
        ]
        return pl.load_data(named, kinds=kinds)

    right = PriorPredictive(replicates=199)(model, with_words(frame))
    assert right.passed
    other = frame.copy()
    other.loc[np.random.default_rng(0).random(1000) < 0.5, "town"] = 1.0  # the middle code: the mean hardly changes
    wrong = PriorPredictive(replicates=199)(model, with_words(other))
    assert not wrong.passed
    drawn = wrong.by.figures(wrong.arrays)["columns_prior_predictive"]
    assert [axes.get_title() for axes in drawn.axes][:5] == ["town", "change", "smoker", "visits", "income"]
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == TOWNS
    np.testing.assert_allclose(wrong.arrays["column town"][1:].sum(1), 1.0)


@pytest.mark.slow
def test_a_step_gives_the_same_numbers_in_every_model() -> None:
    """Weights are finite for every model with a likelihood, of a table with gaps."""
    data = data_of(gaps=0.2, rows=60)
    x, _, mask = rows_of(data)
    likelihood = {"columns": "auto"}
    shape = data.event_shape
    for model in (
        pl.VAE(shape, latent_dim=2, likelihood=likelihood, prior={"vamp": {"components": 4}}, start_at_data=True),
        pl.models.HierarchicalVAE(shape, latent_dims=(3, 2), likelihood=likelihood),
        pl.models.HierarchicalVAE(shape, latent_dims=(3, 2), likelihood=likelihood, inference="bottom_up"),
        pl.models.DiscreteVAE(shape, latent_dims=(3,), likelihood=likelihood),
        pl.models.ConditionalVAE(shape, 2, latent_dim=2, likelihood=likelihood),
        pl.models.SemiSupervisedVAE(shape, 2, latent_dim=2, likelihood=likelihood),
        pl.models.GenerativeNetwork(shape, latent_dim=2, likelihood=likelihood),
    ):
        y = torch.zeros(40, dtype=torch.long) if model.label_dim else None
        model.double().prepare(x, mask)
        assert weigh(model.generate, model.infer, x, y, mask).log_likelihood.isfinite().all()


EMBEDDED: Any = {
    "town": {"categorical": {"embedding": 2}},
    "change": "normal",
    "smoker": "bernoulli",
    "visits": "negative_binomial",
    "income": {"normal": {"scaling": "log"}},
}


def test_an_encoder_sees_an_embedded_category_as_its_learned_vector() -> None:
    data = data_of()
    model, one_hot = model_of(data, EMBEDDED), model_of(data)
    x, mask = rows_of(data).x, torch.ones(40, 5, dtype=torch.bool)
    table = next(part.table for part in model.scaling.parts if getattr(part, "table", None) is not None)
    assert table.shape == (1, 3, 2)
    assert model.scaling.output_shape == (6,)
    place = (model.scaling.column == 0).nonzero().flatten()
    torch.testing.assert_close(model.scaling(x)[:, place], table[0, x[:, 0].long()])
    rest = model.scaling.column > 0
    torch.testing.assert_close(model.scaling(x)[:, rest], one_hot.scaling(x)[:, one_hot.scaling.column > 0])
    torch.testing.assert_close(model.scaling.compared(x), one_hot.scaling(x))
    mask[3, 0] = False  # a gap is the vector 0, and one missing entry
    assert not model.scaling(x, mask)[3, place].any()
    assert (~model.scaling.seen(mask)).sum() == 1
    assert "town   ~ Categorical of 3 (Bonn, Kiel, Ulm), networks see vectors of 2" in str(model)
    one_hot.likelihood.load_state_dict(model.likelihood.state_dict())
    likelihood = model.likelihood(torch.zeros(1, 1, dtype=torch.float64)).log_prob(x)
    torch.testing.assert_close(likelihood, one_hot.likelihood(torch.zeros(1, 1, dtype=torch.float64)).log_prob(x))
    model.encode(x)["z"].base_dist.loc.sum().backward()
    seen = torch.zeros(3, dtype=torch.bool).index_fill(0, x[:, 0].long().unique(), True)
    assert table.grad is not None
    assert torch.equal(table.grad[0].abs().sum(1) > 0, seen)


def test_a_model_with_embedded_categories_is_trained_saved_and_checked(tmp_path: Path) -> None:
    data = data_of(gaps=0.1, rows=200)
    options = {"latent_dim": 1, "likelihood": {"columns": EMBEDDED}, **SMALL}
    people(200).mask(np.random.default_rng(1).random((200, 5)) < 0.1).to_csv(tmp_path / "people.csv", index=False)
    model = {"vae": {**options, "prior": {"vamp": {"components": 3}}, "mask_input": "always"}}
    run = pl.train(
        pl.Experiment(model=model, data=str(tmp_path / "people.csv"), epochs=2), tmp_path / "run", progress=False
    )
    loaded, table = pl.Run.load(run.path).model, "scaling.parts.0.table"
    assert torch.equal(loaded.state_dict()[table], run.model.state_dict()[table])
    x = data.test.batch(slice(None)).x
    torch.testing.assert_close(loaded.encode(x)["z"].mean, run.model.encode(x)["z"].mean)
    for kind in (Tarp(simulations=50, draws=25), Memorisation()):
        kind(loaded, data_of(rows=200))
    assert pl.impute(loaded, *data.test.batch(slice(None))[::2], particles=5).shape[1:] == (20, 5)


@pytest.mark.slow
def test_embedded_categories_train_compiled_as_uncompiled() -> None:
    data, both = data_of(gaps=0.1, rows=200), []
    for how in ("never", "always"):
        torch.manual_seed(0)
        model = pl.VAE(data.event_shape, latent_dim=1, likelihood={"columns": EMBEDDED}, **SMALL)
        before = model.scaling.state_dict()["parts.0.table"].clone()
        both.append([row["train_loss"] for row in pl.fit(model, data, epochs=2, progress=False, compile=how).history])
        assert (model.scaling.state_dict()["parts.0.table"] != before).all()
    assert both[0] == pytest.approx(both[1], rel=1e-4)
