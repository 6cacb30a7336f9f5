"""Digits classified from few labels by five methods: the error on the test images, beside what is published.

- pixels, pca: logistic regression on grey pixels, and on 50 principal components of all training images;
- m1: the same on the means of q(z | x) of a VAE that is trained on all images without labels;
- m2: `few_labels_mnist.yaml`, a semi-supervised VAE, whose classifier is q(y | x);
- m1+m2: a semi-supervised VAE of draws from q(z | x) of the VAE above.

The labels that are kept, the split and training are those of the seed. The VAE of a seed is trained once and kept in
the output directory.

    python examples/few_labels.py --methods m2 --labels 100 --seeds 2
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import pyrolatent as pl
from pyrolatent import tasks

PAPER = "Kingma et al. 2014, 1406.5298"
PUBLISHED = {
    ("m1", 100): "11.82 ± 0.25, by a transductive SVM",
    ("m1", 1000): "4.24 ± 0.07, by a transductive SVM",
    ("m2", 100): "11.97 ± 1.71",
    ("m2", 1000): "3.60 ± 0.56",
    ("m1+m2", 100): "3.33 ± 0.14",
    ("m1+m2", 1000): "2.40 ± 0.02",
}
METHODS = ("pixels", "pca", "m1", "m2", "m1+m2")
SHARE, WEIGHT = 0.02, 5.0  # of labelled codes, and of log q(y | x) for each: 0.1 for each datapoint, as published
DRAWS = 5  # of q(z | x) of each image


class Showing(pl.Callback):
    """Prints an error of the model after each epoch."""

    def __init__(self, error: Callable[[pl.SemiSupervisedVAE], float]) -> None:
        self.error = error

    def on_epoch(self, fit: pl.Fit) -> None:
        """Prints it."""
        print(f"epoch {len(fit.history)}: {self.error(fit.model):.2f} %", flush=True)


class FewLabels:
    """The errors of one seed and one number of labels, in per cent of the test images."""

    def __init__(self, asked: argparse.Namespace, labels: int, seed: int) -> None:
        self.asked, self.labels, self.seed = asked, labels, seed
        source = {asked.data: {"binarize": "none", "labelled": labels, "seed": seed}}
        self.data = pl.load_data(source, data_dir=asked.data_dir)
        self.train, self.validation, self.test = (
            self.data.split(part).batch(slice(None)) for part in ("train", "validation", "test")
        )

    def linear(self, train: Tensor, test: Tensor) -> float:
        """Logistic regression on the known labels."""
        known = self.train.y >= 0
        model = LogisticRegression(max_iter=10_000).fit(train[known].numpy(), self.train.y[known].numpy())
        return 100 * (1 - model.score(test.numpy(), self.test.y.numpy()))

    def pixels(self) -> float:
        """Logistic regression on grey pixels."""
        return self.linear(self.train.x.flatten(1), self.test.x.flatten(1))

    def pca(self) -> float:
        """Logistic regression on principal components."""
        pca = PCA(50, random_state=0).fit(self.train.x.flatten(1))
        return self.linear(*(torch.from_numpy(pca.transform(part.x.flatten(1))) for part in (self.train, self.test)))

    def vae(self) -> pl.VAE:
        """A VAE of all images, which is trained if it is not in the output directory."""
        path = self.asked.output / f"vae-{self.asked.vae_epochs}-{self.seed}"
        network = {"mlp": {"hidden": [500, 500]}}
        experiment = pl.Experiment(
            model={"vae": {"latent_dim": 50, "encoder": network, "decoder": network}},
            data={self.asked.data: {"binarize": "dynamic", "seed": self.seed}},
            epochs=self.asked.vae_epochs,
            batch_size=200,
            optimizer={"Adam": {"lr": 1e-3}},
            seed=self.seed,
        )
        if (path / "record.json").exists() and (run := pl.Run.load(path)).record["finished"]:
            return run.model
        quiet = {"overwrite": True, "progress": sys.stdout.isatty()}
        return pl.train(experiment, path, data_dir=self.asked.data_dir, **quiet).model

    def m1(self) -> float:
        """Logistic regression on the means of q(z | x)."""
        model = self.vae()
        return self.linear(*(tasks.encode(model, part.x)["z"] for part in (self.train, self.test)))

    def m2(self) -> float:
        """A semi-supervised VAE of binarized pixels."""
        path = Path(__file__).parent / "few_labels_mnist.yaml"
        (options,) = pl.Experiment.load(path).data.values()
        data = {self.asked.data: options | {"labelled": self.labels, "seed": self.seed}}
        changed = {"data": data, "epochs": self.asked.m2_epochs, "seed": self.seed}
        experiment = pl.Experiment.load(path, changed)
        data = experiment.load_data(self.asked.data_dir)
        model, x = experiment.build(data), data.test.batch(slice(None)).x
        experiment.fit(model, data, sys.stdout.isatty(), self.trace(x))
        return self.error(model, x)

    def m1_m2(self) -> float:
        """A semi-supervised VAE of draws from q(z | x) of each image."""
        vae = self.vae()
        validation, test = (tasks.encode(vae, part.x)["z"] for part in (self.validation, self.test))
        q = tasks.encode(vae, self.train.x, what="parameters")
        spread = q["z.loc"].std(0)
        used = spread > 0.1 * spread.max()  # in the others q(z | x) is p(z), whatever x is
        torch.manual_seed(self.seed)
        drawn = torch.normal(q["z.loc"].expand(DRAWS, -1, -1), q["z.scale"].expand(DRAWS, -1, -1))
        data = pl.load_data(
            drawn[..., used].flatten(0, 1).numpy(), labels=self.train.y.repeat(DRAWS).numpy(), labelled_share=SHARE,
            validation=(validation[:, used].numpy(), self.validation.y.numpy()),
            test=(test[:, used].numpy(), self.test.y.numpy()),
        )  # fmt: skip
        network = {"mlp": {"hidden": [300]}}
        options = {"encoder": network, "decoder": network, "classifier": network, "likelihood": "normal"}
        model = pl.SemiSupervisedVAE(data.event_shape, 10, latent_dim=20, classifier_weight=WEIGHT, **options)
        pl.fit(
            model, data, sys.stdout.isatty(), self.trace(test[:, used]), objective="analytic_elbo",
            epochs=self.asked.m1_m2_epochs, batch_size=60, optimizer={"Adam": {"lr": 1e-3}}, seed=self.seed,
        )  # fmt: skip
        return self.error(model, test[:, used])

    def error(self, model: pl.SemiSupervisedVAE, x: Tensor) -> float:
        """The classifier's error."""
        return 100 * float((tasks.classify(model, x).argmax(-1) != self.test.y).float().mean())

    def trace(self, x: Tensor) -> list[pl.Callback]:
        """Prints the error after each epoch, if that is asked for."""
        return [Showing(lambda model: self.error(model, x))] if self.asked.trace else []


def main() -> None:
    """Prints a row for each method and number of labels."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--vae-epochs", type=int, default=12)
    parser.add_argument("--m2-epochs", type=int, default=12)
    parser.add_argument("--m1-m2-epochs", type=int, default=6, help="passes over five draws of each image")
    parser.add_argument("--trace", action="store_true", help="print the error after each epoch")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/few_labels"))
    asked = parser.parse_args()
    torch.set_flush_denormal(True)

    print(f"errors in % of the test images, one column for each seed; in brackets {PAPER}")
    for labels in asked.labels:
        cases = [FewLabels(asked, labels, seed) for seed in range(asked.seeds)]
        for method in asked.methods:
            errors = [getattr(case, method.replace("+", "_"))() for case in cases]
            cells = "".join(f"{error:8.2f}" for error in errors)
            published = f"  [{PUBLISHED[method, labels]}]" if (method, labels) in PUBLISHED else ""
            print(f"{labels:>6} labels  {method:<7}{cells}{published}", flush=True)


if __name__ == "__main__":
    main()
