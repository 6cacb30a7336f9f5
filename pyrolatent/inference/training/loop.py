"""The training loop."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrolatent.data.splits import Data, Split
from pyrolatent.declaration import build
from pyrolatent.inference import distributed
from pyrolatent.inference.devices import evaluating
from pyrolatent.inference.objectives.base import as_objective
from pyrolatent.inference.training import diagnosis
from pyrolatent.inference.training.callbacks import Callback, on_each_step
from pyrolatent.inference.training.fitted import Fit, Row
from pyrolatent.inference.training.gradient import Gradient
from pyrolatent.inference.training.held_out import held_out
from pyrolatent.inference.training.optim import build_optimizer, take_step
from pyrolatent.inference.weights import arguments, training_arguments


class Trainer:
    """The training loop of one model.

    Args:
        run: the model and the declared settings; its history grows with each epoch.
        data: the data, on the model's device.
        objective: what is maximised.
    """

    def __init__(self, run: Fit, data: Data, objective: Any) -> None:
        self.run, self.model, self.data, self.settings = run, run.model, data, run.settings
        self.objective = as_objective(objective)
        self.warmup = build("warmup", self.settings["kl_warmup"]) if "kl_warmup" in self.settings else None
        self.parameters = list(self.model.parameters())
        self.optimizer, self.scheduler = build_optimizer(self.settings, self.parameters)
        self.epochs: int = self.objective.epochs or self.settings["epochs"]
        self.batches = len(self.minibatches(torch.arange(len(data.train))))
        run.total_steps = self.batches * self.epochs
        self.gradient = Gradient(self.model, data.train, self.objective, self.settings, run.total_steps)
        self.validated = data.train if self.model.of_training_rows else data.validation
        self.held_out = held_out(self.model, self.objective, len(self.validated))
        self.factor = self.parameters[0].new_ones(())
        self.steps = 0
        self.extra: dict[str, float] = {}

    def train(self, callbacks: Sequence[Callback]) -> None:
        """Trains for all epochs, with validation, schedules and callbacks."""
        run, scores = self.run, list[float]()
        self.model.fitted = True
        distributed.broadcast([*(p.data for p in self.parameters), *self.model.buffers()])
        if distributed.rank():  # each process has its own draws from here on
            torch.manual_seed(self.settings["seed"] + (distributed.rank() << 32))
        for each in callbacks:
            each.on_start(run)
        for epoch in range(1, self.epochs + 1):
            run.doing = f"epoch {epoch}, validation {run.validation:.2f}" if epoch > 1 else "epoch 1"
            state, started = diagnosis.State(self), time.perf_counter()
            row: Row = {"epoch": epoch, "train_loss": None, "validation_elbo": None}
            row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            training = self.epoch(on_each_step(callbacks))
            distributed.average_buffers(self.model)
            row["seconds"] = time.perf_counter() - started
            run.validation, watched = self.score(self.validated), self.watch()
            numbers = {"the training bound": training, "the validation score": run.validation, **watched, **self.extra}
            if bad := diagnosis.not_finite(self.model, numbers):
                diagnosis.replay(self, state, epoch, bad)
            if self.scheduler is not None:
                take_step(self.scheduler, -run.validation)
            scores.append(run.validation)
            name = self.held_out.name
            row |= {"train_loss": -training, name: -run.validation if name.endswith("loss") else run.validation}
            run.history.append(row | watched | self.extra)
            self.model.eval()
            for each in callbacks:
                each.on_epoch(run)
            if run.stop:
                break
        for each in callbacks:
            each.on_end(run)
        diagnosis.warn_if_not_converged(self.held_out.name, scores, self.epochs)
        diagnosis.warn_of_floors(self.model.modules())

    def epoch(self, callbacks: Sequence[Callback] = ()) -> float:
        """Trains for one pass over the data; returns the mean of the objective per datapoint."""
        if not self.objective.by_gradient:
            with torch.no_grad():
                self.objective.update(self.model, training_arguments(self.model, self.data.train.batch(slice(None))))
            return self.score(self.data.train)
        self.model.train()
        total = self.factor.new_zeros(())
        extra: dict[str, Tensor] = {}
        for index in self.indices():
            if self.gradient.compiled is None and self.gradient.is_worth_compiling(self.steps):
                doing, self.run.doing = self.run.doing, "compiling"
                self.gradient.compile(distributed.shard(index), self.factor)
                self.run.doing = doing
            bound = self.step(index)
            total = total + bound
            for name, loss in self.objective.extra_losses().items():
                extra[name] = extra.get(name, 0.0) + loss
            for each in callbacks:
                each.on_step(self.run, self.steps, partial(_mean, bound, len(index)))
        sums = zip(extra, distributed.total([*extra.values()]) if extra else [], strict=True)
        self.extra = {name: loss.item() / len(self.data.train) for name, loss in sums}
        return total.item() / len(self.data.train)

    def step(self, index: Tensor) -> Tensor:
        """Takes one optimiser step on a minibatch; returns the bound with beta = 1, summed over it."""
        if self.warmup:
            self.factor.fill_(self.warmup(self.steps / self.batches))
        own = distributed.shard(index)
        weight = len(own) / len(index)
        own = own if len(own) else index[:1]  # a process with an empty shard takes part with weight 0
        bound, *gradients = self.gradient(own, self.factor)
        if distributed.size() > 1:
            parts = [bound * (weight > 0), *(g * weight for g in gradients if g is not None)]
            bound, *totals = distributed.total(parts)
            left = iter(totals)
            gradients = [None if g is None else next(left) for g in gradients]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if "clip_norm" in self.settings:
            nn.utils.clip_grad_norm_(self.parameters, self.settings["clip_norm"])
        self.optimizer.step()
        self.steps += 1
        return bound

    def indices(self) -> tuple[Tensor, ...]:
        """The training data in random order, in minibatches."""
        order = torch.randperm(len(self.data.train)).to(self.factor.device)
        distributed.broadcast([order])
        return self.minibatches(order)

    def minibatches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Splits an order into minibatches; a single remaining datapoint, which has no variance, joins the last one."""
        *others, last = order.split(self.settings["batch_size"])
        if others and len(last) == 1 < self.settings["batch_size"]:
            return *others[:-1], torch.cat([others[-1], last])
        return *others, last

    def score(self, split: Split) -> float:
        """The mean held-out score, with the same noise at each epoch so that epochs are comparable."""
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad(), evaluating(self.model, self.settings["seed"] + (distributed.rank() << 32)):
            for index in torch.arange(len(split), device=self.factor.device).split(1000):
                own = distributed.shard(index)
                if not len(own):
                    continue
                with self.model.of_rows(own, len(split)):
                    total += self.held_out.score(arguments(self.model, split.batch(own))).item()
        (total,) = distributed.total([total.to(self.factor)])
        return total.item() / len(split)

    def watch(self) -> dict[str, float]:
        """Further numbers to monitor."""
        with evaluating(self.model, self.settings["seed"]):
            return self.held_out.monitor(self.data)


def _mean(total: Tensor, count: int) -> float:
    return total.item() / count
