"""The training loop."""

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyro
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import pyrolatent.inference.warmup  # noqa: F401 (registers the warm-ups)
from pyrolatent.data import Batch, Data, Split
from pyrolatent.declaration import Component, Kind, build, choices, register
from pyrolatent.errors import SEEDS, InputError, TrainingError, only
from pyrolatent.inference import distributed
from pyrolatent.inference.compiled import WORTH_COMPILING, CaptureError, compiled
from pyrolatent.inference.contrastive import EnergyObjective
from pyrolatent.inference.held_out import held_out
from pyrolatent.inference.modes import evaluating
from pyrolatent.inference.objectives import EM, ClosedForm, Objective, PyroObjective
from pyrolatent.inference.rules import declared_name, has_posterior, hold_to_rules, likelihood_name, require_data
from pyrolatent.inference.weights import arguments, training_arguments, weigh
from pyrolatent.models.arrays import place_of
from pyrolatent.models.conditionals import networks_in
from pyrolatent.models.latent import LatentVariableModel
from pyrolatent.models.modes import alone, statistics_held, training_mode
from pyrolatent.models.unnormalised import UnnormalisedDensity

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Row = dict[str, Any]

TIMED = range(5, 25)
"""The steps whose duration says how long training will take."""

LEAST_NATS = 0.2
"""Rise of a validation score in nats over the last quarter of training from which it counts as not converged."""
LEAST_SHARE = 0.01
"""The same of a validation loss, whose units are the data's, as a share of it."""

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Fit:
    """A trained model with how it was trained.

    Attributes:
        model: the model, holding the weights of `best_epoch` with early stopping, else of the last epoch.
        data: what it was trained on.
        settings: what was declared, as in an experiment file.
        history: a row an epoch: `epoch`, `train_loss` (running mean of the negative bound over the epoch's batches,
            nats a datapoint, lower is better), `validation_elbo` (nats a datapoint, higher is better),
            `learning_rate`, `seconds` (of the epoch's training), and other losses that the objective names; in the
            place of `validation_elbo` what `held_out` says, of models without a bound or without an encoder.
        best_epoch: the epoch whose weights were kept by early stopping.
    """

    model: LatentVariableModel
    data: Data
    settings: dict[str, Any]
    history: list[Row] = field(default_factory=list)
    best_epoch: int | None = None


def fit(
    model: LatentVariableModel,
    data: Data,
    on_epoch: Callable[[Fit], Any] | None = None,
    progress: bool = True,
    *,
    objective: Annotated[Any, Kind("objective")] = "analytic_elbo",
    epochs: Annotated[int, Gt(0)] = 300,
    batch_size: Annotated[int, Gt(0)] = 128,
    optimizer: Annotated[Any, Kind("optimizer")] = {"Adam": {"lr": 3e-3}},  # noqa: B006 (only read)
    scheduler: Annotated[Any, Kind("scheduler")] = None,
    clip_norm: Annotated[float, Gt(0)] | None = None,
    kl_warmup: Annotated[Any, Kind("warmup")] = None,
    patience: Annotated[int, Gt(0)] | None = None,
    seed: Annotated[int, Ge(0), Lt(SEEDS)] = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    compile: Literal["auto", "always", "never"] = "auto",
    precision: Literal["float32", "bf16"] = "float32",
) -> Fit:
    """Trains a model by stochastic variational inference.

    Where torch.distributed has a process group, as under torchrun, the processes share each minibatch.

    Args:
        model: the model; it is trained in place.
        data: what it is trained on.
        on_epoch: called after each epoch with the fit so far; the model then holds that epoch's weights, in evaluation
            mode.
        progress: whether to show a progress bar.
        objective: what is maximised, one of this package's or of Pyro's.
        epochs: passes over the training data, at most.
        batch_size: datapoints in a minibatch; the last of an epoch may be smaller, and a single datapoint that is left
            over joins the one before it.
        optimizer: a class of `torch.optim`.
        scheduler: a class of `torch.optim.lr_scheduler`, stepped after each epoch.
        clip_norm: bound on the norm of the gradient of the loss a datapoint.
        kl_warmup: how the factor of log p(z) - log q(z | x) in the target rises to 1.
        patience: stop when the validation bound has not risen for so many epochs, and keep the best weights; it begins
            when a kl_warmup has ended.
        seed: of everything that is random in training; the caller's random state is left as it was.
        device: where to train; "auto" takes an accelerator where there is one.
        compile: whether the gradient is compiled; "auto" does where a minute or more of training is ahead. Compiled
            and uncompiled steps draw the same numbers and agree to rounding. What cannot be compiled is trained
            uncompiled, with a warning.
        precision: of the products in networks: "bf16" is faster on processors and GPUs that have it. Parameters and
            all probabilities stay in float32. A model in float64 trains in float64.

    Raises:
        InputError: a declaration that cannot be right, or data that the model does not fit, before any training.
        TrainingError: a number that is not finite; the model then holds the state before that step.
    """
    given = locals()
    require_data(data)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"fit was given a {type(model).__name__} as its model; build one, as pl.VAE(data.event_shape, ...)"
        )
    declared = {name: given[name] for name in training_settings().options}
    settings = training_settings().validate(declared, "fit")
    target, (_, dtype) = choose_device(device), place_of(model)
    if dtype == torch.float64 and (settings["precision"] == "bf16" or target.type == "mps"):
        what = "device: mps" if target.type == "mps" else "precision: bf16"
        raise InputError(
            f"{what} is for models in float32, but {type(model).__name__} is in float64; call model.float(), or "
            f"declare {'device: cpu' if target.type == 'mps' else 'precision: float32, which leaves the type as it is'}"
        )
    devices = [target] if target.type == "cuda" else []
    with alone(), torch.enable_grad(), torch.random.fork_rng(devices=devices), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        run = Fit(model.to(target), data, {name: value for name, value in settings.items() if value is not None})
        trainer = Trainer(run, data.to(target, dtype), build("objective", settings["objective"]))
        known = model.vector_labels, model.divisor
        try:
            trainer.rehearse()
        except BaseException:
            model.vector_labels, model.divisor = known
            raise
        try:
            with pyro.validation_enabled(False), _bar(progress) as bar:
                trainer.train(on_epoch, bar)
        finally:
            model.eval()
    return run


def training_settings() -> Component:
    """What can be declared about training, read from the signature of `fit`."""
    return Component(fit, ("model", "data", "on_epoch", "progress"))


def choose_device(name: str) -> torch.device:
    """The device of this name, "auto" being an accelerator where there is one.

    Raises:
        InputError: the machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in (*available, "auto"):
        raise InputError(f"there is no device {name!r}; {choices(name, ['auto', *available])}")
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise InputError(f"device was {name!r}, but this machine has none; use auto or cpu")
    return torch.device(name)


class Trainer:
    """One run of `fit`: its optimiser, schedules and the state to fall back to."""

    def __init__(self, run: Fit, data: Data, objective: Any) -> None:
        self.run, self.model, self.data = run, run.model, data
        of_pyro = isinstance(objective, pyro.infer.ELBO) and not isinstance(objective, Objective)
        self.objective = PyroObjective(objective) if of_pyro else objective
        self.held_out = held_out(self.model, self.objective)
        settings = run.settings
        self.warmup = build("warmup", settings["kl_warmup"]) if "kl_warmup" in settings else None
        if self.warmup and not isinstance(objective, Objective):
            raise InputError(
                f"kl_warmup scales the KL inside a bound of this package, but the objective is "
                f"{type(objective).__name__}; declare objective: elbo or analytic_elbo, or leave kl_warmup out"
            )
        defaults = {name: option.default for name, option in training_settings().options.items()}
        changed = {name: settings.get(name) if settings.get(name) != defaults[name] else None for name in defaults}
        takes = objective.settings if isinstance(objective, ClosedForm | EM) else [*defaults]
        if isinstance(self.model, UnnormalisedDensity):  # its products are no part of a `Conditional`
            takes = [name for name in takes if name != "precision"]
        only(f"training {type(self.model).__name__} by {declared_name(self.objective)}", takes, changed)
        hold_to_rules(self.model, data, self.objective)
        if any(parameter.is_inference() for parameter in self.model.parameters()):
            raise InputError("a model that was built under torch.inference_mode cannot be trained; build it outside")
        several = data.train.batch(torch.randperm(len(data.train))[:1000].to(data.train.x.device))
        with pyro.validation_enabled(False):
            self.model.prepare(several.x, several.mask)
        self.parameters = list(self.model.parameters())
        if not isinstance(objective, ClosedForm | EM) and not any(p.requires_grad for p in self.parameters):
            raise InputError("the model has no parameter to train: none of them requires a gradient")
        scheduler = settings.get("scheduler")
        try:
            self.optimizer = _optimizer(settings["optimizer"], self.parameters)
            self.scheduler = build("scheduler", scheduler, optimizer=self.optimizer) if scheduler else None
        except (TypeError, ValueError) as error:
            declared = {name: settings[name] for name in ("optimizer", "scheduler") if settings.get(name)}
            raise InputError(f"{declared} cannot be built: {' '.join(str(error).split())}") from error
        if getattr(self.scheduler, "mode", None) == "max":
            raise InputError("scheduler mode max is for a score, but the validation loss is what it sees; declare min")
        if distributed.size() > 1 and isinstance(self.model, UnnormalisedDensity):
            raise InputError(
                f"{type(self.model).__name__} keeps chains, which processes do not share, but there are "
                f"{distributed.size()}; train it in one"
            )
        if distributed.size() > settings["batch_size"]:
            raise InputError(
                f"a batch of {settings['batch_size']} datapoints cannot be shared by {distributed.size()} processes; "
                "declare a larger batch_size, or start fewer"
            )
        smallest = min(len(data.train), settings["batch_size"]) // distributed.size()
        if smallest < 2 and any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            raise InputError(
                f"batch normalisation needs minibatches of two or more datapoints, but they have {smallest}; declare a "
                "larger batch_size, or norm: layer"
            )
        self.batches = len(self.minibatches(torch.arange(len(data.train))))
        self.steps = 0
        self.factor = self.parameters[0].new_ones(())
        self.compiling = settings["compile"] if self.factor.device.type in ("cpu", "cuda") else "never"
        self.compiled: Callable[..., Any] | None = None
        self.compiled_size = 0
        self.clock = 0.0
        self.also: dict[str, float] = {}

    def rehearse(self) -> None:
        """One validated pass over one minibatch, before any training."""
        y = self.data.train.y
        self.model.vector_labels = self.model.conditional and y is not None and y.is_floating_point()
        self.model.divisor = self.data.divisor
        first = self.data.train.batch(slice(0, self.run.settings["batch_size"]))
        if isinstance(self.objective, EnergyObjective):
            self.objective.prepare(self.model)
        if not has_posterior(self.model):
            return
        if isinstance(self.objective, Objective) and self.objective.scores_again:
            devices = [first.x.device] if first.x.is_cuda else []
            with training_mode(self.model), torch.random.fork_rng(devices=devices), statistics_held():
                inputs = training_arguments(self.model, first)
                self.objective.differentiable_loss(self.model.generate, self.model.infer, *inputs)
        validate = self.data.binarize != "relaxed"
        with torch.no_grad(), evaluating(self.model), pyro.validation_enabled(validate):
            weights = weigh(self.model.generate, self.model.infer, *training_arguments(self.model, first))
            bad = int((~torch.isfinite(weights.log_likelihood)).flatten(0, -2).any(0).sum())
            if bad:
                raise InputError(
                    f"log p(x | z) is not finite for {bad} of the first {len(first.x)} datapoints before any training: "
                    f"the {likelihood_name(self.model)} likelihood has no finite density there; declare another one"
                )
            for site, value in {"x": weights.log_likelihood, **weights.log_prior, **weights.log_posterior}.items():
                if value.shape[-2:] != (1, len(first.x)):
                    raise InputError(
                        f"the log-probability of the site {site!r} has the shape {tuple(value.shape)} for "
                        f"{len(first.x)} datapoints; give its distribution the batch shape of the data with to_event"
                    )

    def train(self, on_epoch: Callable[[Fit], Any] | None, bar: "Progress") -> None:
        """All epochs, with validation, schedules and early stopping."""
        settings, history = self.run.settings, self.run.history
        self.model.fitted = True
        epochs = 1 if isinstance(self.objective, ClosedForm) else settings["epochs"]
        best, best_state = -math.inf, None
        scores: list[float] = []
        task = bar.add_task("epoch 1", total=self.batches * epochs)
        distributed.same([*(p.data for p in self.parameters), *self.model.buffers()])
        if distributed.rank():  # draws of its own from here on
            torch.manual_seed(settings["seed"] + (distributed.rank() << 32))
        for epoch in range(1, epochs + 1):
            state, started = self._state(), time.perf_counter()
            rate = self.optimizer.param_groups[0]["lr"]
            training = self._epoch(bar, task)
            distributed.average_buffers(self.model)
            seconds = time.perf_counter() - started
            validation = self._score(self.data.validation)
            watched = self._watch()
            numbers = {"the training bound": training, "the validation score": validation, **watched, **self.also}
            bad = [name for name, number in numbers.items() if not math.isfinite(number)]
            bad += [name for name, value in self.model.named_parameters() if not torch.isfinite(value).all()]
            if bad:
                self._replay(state, epoch, bad[0])
            if self.scheduler is not None:
                metrics = [-validation] if "metrics" in inspect.signature(self.scheduler.step).parameters else []
                self.scheduler.step(*metrics)
            scores.append(validation)
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": -training,
                    "validation_elbo": None,
                    "learning_rate": rate,
                    "seconds": seconds,
                    self.held_out.name: -validation if self.held_out.name.endswith("loss") else validation,
                    **watched,
                    **self.also,
                }
            )
            bar.update(task, description=f"epoch {epoch + 1}, validation {validation:.2f}")
            warm = epoch >= min(getattr(self.warmup, "epochs", 0), epochs)
            if "patience" in settings and warm and validation > best:
                best, best_state, self.run.best_epoch = validation, copy.deepcopy(self.model.state_dict()), epoch
            if on_epoch:
                self.model.eval()
                on_epoch(self.run)
            if self.run.best_epoch is not None and epoch - self.run.best_epoch >= settings["patience"]:
                break
        if best_state is not None:
            self.model.load_state_dict(best_state)
        name = self.held_out.name
        of_loss = name.endswith("loss")
        slope = still_rising(scores, LEAST_SHARE * abs(scores[-1]) if of_loss else LEAST_NATS)
        if slope is not None and len(scores) == epochs:
            verb = "falling" if of_loss else "rising"
            warnings.warn(
                f"not converged: {name} was still {verb}, by {slope:.2g} an epoch, at the last of {epochs} epochs; set "
                f"epochs: {2 * epochs}, or a larger learning rate",
                stacklevel=4,
            )
        for part in self.model.modules():
            at_floor = getattr(part, "at_floor", None)
            if at_floor and at_floor():
                warnings.warn(
                    f"a learned parameter of {part} has reached its lower bound, which then decides the density: "
                    "constant dimensions of the data drive it there, or units in which all numbers are small; declare "
                    "another bound, scale x, or dequantize the data",
                    stacklevel=4,
                )

    def _epoch(self, bar: "Progress", task: "TaskID") -> float:
        """One pass over the training data; returns the mean of what is maximised, a datapoint."""
        if isinstance(self.objective, ClosedForm | EM):
            with torch.no_grad():
                self.objective.update(self.model, training_arguments(self.model, self.data.train.batch(slice(None))))
            return self._score(self.data.train)
        self.model.train()
        total = torch.zeros((), device=self.factor.device)
        also: dict[str, Tensor] = {}
        for index in self.indices():
            if self.compiled is None and self._is_worth_compiling():
                description = bar.tasks[task].description
                bar.update(task, description="compiling")
                self.compile(index)
                bar.update(task, description=description)
            total = total + self.step(index)
            for name, loss in getattr(self.objective, "also", {}).items():
                also[name] = also.get(name, 0.0) + loss
            bar.advance(task)
        sums = zip(also, distributed.total([*also.values()]) if also else [], strict=True)
        self.also = {name: loss.item() / len(self.data.train) for name, loss in sums}
        return total.item() / len(self.data.train)

    def indices(self) -> tuple[Tensor, ...]:
        """The training data in random order, in minibatches."""
        order = torch.randperm(len(self.data.train)).to(self.factor.device)
        distributed.same([order])
        return self.minibatches(order)

    def minibatches(self, order: Tensor) -> tuple[Tensor, ...]:
        """An order in minibatches; a single datapoint that is left over, which has no variance, joins those before."""
        *others, last = order.split(self.run.settings["batch_size"])
        if others and len(last) == 1 < self.run.settings["batch_size"]:
            return *others[:-1], torch.cat([others[-1], last])
        return *others, last

    def step(self, index: Tensor) -> Tensor:
        """One gradient step on the datapoints of a minibatch; returns the bound with beta = 1, summed over it."""
        if self.warmup:
            self.factor.fill_(self.warmup(self.steps / self.batches))
        own = distributed.share(index)
        weight = len(own) / len(index)
        own = own if len(own) else index[:1]  # a process without a part of the minibatch takes part with weight 0
        compiled = self.compiled if len(own) == self.compiled_size else None
        bound, *gradients = (compiled or self._gradient)(own, self.factor)
        if distributed.size() > 1:
            parts = [bound * (weight > 0), *(g * weight for g in gradients if g is not None)]
            bound, *totals = distributed.total(parts)
            left = iter(totals)
            gradients = [None if g is None else next(left) for g in gradients]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if "clip_norm" in self.run.settings:
            nn.utils.clip_grad_norm_(self.parameters, self.run.settings["clip_norm"])
        self.optimizer.step()
        self.steps += 1
        return bound

    def _gradient(self, index: Tensor, factor: Tensor) -> tuple[Any, ...]:
        """The bound summed over these datapoints, and the gradient of the mean negative target by each parameter."""
        for parameter in self.parameters:
            parameter.grad = None
        inputs = training_arguments(self.model, self.data.train.batch(index))
        with networks_in(PRECISIONS[self.run.settings["precision"]]):
            bound = self.objective.accumulate(self.model, inputs, factor)
        return bound, *(parameter.grad for parameter in self.parameters)

    def _is_worth_compiling(self) -> bool:
        if self.compiling != "auto":
            return self.compiling == "always"
        if self.steps in (TIMED.start, TIMED.stop) and self.factor.is_cuda:
            torch.cuda.synchronize()
        if self.steps == TIMED.start:
            self.clock = time.perf_counter()
        if self.steps != TIMED.stop:
            return False
        left = self.batches * self.run.settings["epochs"] - self.steps
        return (time.perf_counter() - self.clock) / len(TIMED) * left > WORTH_COMPILING

    def compile(self, index: Tensor) -> None:
        """Compiles the gradient for minibatches as large as this one, or says why it cannot be."""
        own, asked, self.compiling = distributed.share(index), self.compiling, "never"
        if getattr(self.objective, "keeps_state", False):
            if asked == "always":
                name = declared_name(self.objective)
                warnings.warn(f"training goes on uncompiled: {name} remembers what a graph would not", stacklevel=5)
            return
        try:
            self.compiled = compiled(self._gradient, (own, self.factor), self.model, self.run.settings["precision"])
            self.compiled_size = len(own)
        except CaptureError as error:
            warnings.warn(f"training goes on uncompiled: {error}", stacklevel=5)

    def _score(self, split: Split) -> float:
        """Mean held-out score, with the same noise at each epoch so that epochs can be compared."""
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad(), evaluating(self.model, self.run.settings["seed"] + (distributed.rank() << 32)):
            for index in torch.arange(len(split), device=self.factor.device).split(1000):
                own = distributed.share(index)
                if len(own):
                    total += self.held_out.score(arguments(self.model, split.batch(own))).item()
        (total,) = distributed.total([total.to(self.factor)])
        return total.item() / len(split)

    def _watch(self) -> dict[str, float]:
        """What is watched beside the score."""
        with evaluating(self.model, self.run.settings["seed"]):
            return self.held_out.monitor(self.data)

    def _state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.parameters[0].is_cuda else [],
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])

    def _replay(self, state: dict[str, Any], epoch: int, bad: str) -> None:
        """Runs the epoch again, looking at every number, to name the step and the site that were not finite."""
        self._restore(state)
        self.model.train()
        for index in self.indices():
            before = self._state()
            bound = self.step(index)
            if not torch.isfinite(bound) or not all(torch.isfinite(p).all() for p in self.parameters):
                step = self.steps
                self._restore(before)
                culprit = self._culprit(self.data.train.batch(index))
                raise TrainingError(
                    f"{culprit} at step {step} (epoch {epoch}); the model holds the state before that step: "
                    "lower the learning rate, set clip_norm, or bound the scale with min_scale"
                )
        self._restore(state)
        raise TrainingError(
            f"{bad} was not finite after epoch {epoch}; the model holds the state before that epoch: "
            "lower the learning rate, or set clip_norm"
        )

    @torch.no_grad()
    def _culprit(self, batch: Batch) -> str:
        if not has_posterior(self.model):
            return "the loss or its gradient was not finite"
        particles = getattr(self.objective, "num_particles", 1)
        inputs = training_arguments(self.model, batch)
        weights = weigh(self.model.generate, self.model.infer, *inputs, particles=particles)
        terms = {f"log q({site} | x)": value for site, value in weights.log_posterior.items()}
        terms |= {f"log p({site})": value for site, value in weights.log_prior.items()}
        for name, value in {**terms, "log p(x | z)": weights.log_likelihood}.items():
            bad = int((~torch.isfinite(value)).flatten(0, -2).any(0).sum())
            if bad:
                return f"{name} was not finite for {bad} of {len(batch.x)} datapoints"
        return "the gradient was not finite, though every log-probability was,"


def still_rising(scores: list[float], least: float) -> float | None:
    """The slope of scores by epoch over the last quarter of training, None if they have converged.

    They have not where the line of least squares rises there by more than `least`, and by more than three standard
    errors.

    Args:
        scores: one an epoch, higher is better.
        least: rise that matters, in the units of the scores.
    """
    last = np.array(scores[-max(8, len(scores) // 4) :])
    if len(scores) < 2 * len(last):
        return None
    epochs = np.arange(len(last)) - (len(last) - 1) / 2
    slope = epochs @ last / (epochs @ epochs)
    residuals = last - last.mean() - slope * epochs
    error = math.sqrt(residuals @ residuals / (len(last) - 2) / (epochs @ epochs))
    return float(slope) if slope * (len(last) - 1) > least and slope > 3 * error else None


def _optimizer(declaration: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The declared optimiser, with its update in one kernel where it has one and nothing else was asked for."""
    if isinstance(declaration, str):
        declaration = {declaration: {}}
    if isinstance(declaration, Mapping):
        ((name, options),) = declaration.items()
        fused = "fused" in inspect.signature(getattr(torch.optim, name, object)).parameters
        if fused and not {"fused", "foreach", "differentiable"} & {*options}:
            with suppress(RuntimeError):
                return build("optimizer", {name: {**options, "fused": True}}, params=parameters)
    return build("optimizer", declaration, params=parameters)


@contextmanager
def _bar(visible: bool) -> Iterator["Progress"]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not visible, transient=True) as bar:
        yield bar


for _name, _class in vars(torch.optim).items():
    # LBFGS wants to call the loss again, SparseAdam wants sparse gradients, Muon wants matrices alone.
    if isinstance(_class, type) and _name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon"):
        register("optimizer", _name, Component(_class, ("params",)))
for _name, _class in vars(torch.optim.lr_scheduler).items():
    # The others want functions or schedulers, which have no spelling in a declaration.
    others = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
    if not isinstance(_class, type) or _name[0] == "_" or _name in others:
        continue
    if issubclass(_class, torch.optim.lr_scheduler.LRScheduler):
        register("scheduler", _name, Component(_class, ("optimizer",)))
