"""Markov networks: products of positive factors over cliques, summed exactly by variable elimination."""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from pyrolatent.declaration import PositiveFloat, component
from pyrolatent.errors import InputError, at_least, at_least_one, is_whole
from pyrolatent.models.arrays import as_numbers, device_and_dtype
from pyrolatent.models.energies.density import Beta, UnnormalisedDensity, in_real_numbers

LARGEST = 2**24
"""Size of the largest table that an elimination may make."""

Energies = Sequence[Tensor | nn.Module | Callable[..., Tensor]]
Given = Mapping[int, Any]
"""Values, () or (batch,), by number of their variable, as numbers, tensors, arrays or lists."""
Evidence = dict[int, Tensor]
"""The same, validated: integer tensors on the model's device."""


@component("markov_network", "model")
class MarkovNetwork(UnnormalisedDensity):
    """p(x) = exp(-∑_C E_C(x_C)) / Z over discrete variables X1, ..., XD, one energy for each clique C.

    Exact results come from variable elimination in log space: the factors exp(-E_C) of a variable are multiplied and
    summed over it, beginning with the variable of the smallest table (Koller and Friedman 2009, chapter 9). The cost is
    that of the largest table, not of the number of joint states.

    Args:
        event_shape: shape of one datapoint; its flattened entries, integers from 0, are X1, X2, ...
        cliques: the variables of each clique, numbered from 1.
        cardinality: number of values of each variable, or one number for all.
        spread: standard deviation of the initial values of learned energies.
        energies: one per clique, in Python only: an array of fixed energies (k_a, k_b, ...), a parameter, or a function
            or module from the values of the clique (states,), (states,), ... to energies (states,). None means learned
            tables.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        cliques: list[list[int]],
        cardinality: list[int] | Annotated[int, Gt(1)] = 2,
        spread: PositiveFloat = 0.01,
        energies: Any = None,
    ) -> None:
        width = torch.Size(event_shape).numel()
        given: Any = cardinality  # any type of array and integer
        sizes = [given] * width if is_whole(given) else list(given)
        if len(sizes) != width:
            raise InputError(f"cardinality lists {len(sizes)} variables, but x has {width} entries")
        at_least(2, **{f"cardinality of X{i + 1}": size for i, size in enumerate(sizes)})
        levels = torch.tensor(sizes)
        super().__init__(event_shape, levels)
        self._sizes = sizes
        self.cliques = _validated_cliques(cliques, width)
        shapes = [tuple(sizes[i - 1] for i in clique) for clique in self.cliques]
        for clique, shape in zip(self.cliques, shapes, strict=True):
            if math.prod(shape) > LARGEST:
                raise InputError(
                    f"the clique {clique} has {math.prod(shape):,} joint values, more than {LARGEST:,}; "
                    "declare smaller cliques"
                )
        if energies is None:
            energies = [nn.Parameter(spread * torch.randn(shape)) for shape in shapes]
        self._keep(energies, shapes)
        self._plans: dict[Any, _Plan] = {}
        self.blocks = self._colours()

    def _keep(self, energies: Energies, shapes: list[tuple[int, ...]]) -> None:
        if len(energies) != len(self.cliques):
            raise InputError(f"{len(energies)} energies were given for {len(self.cliques)} cliques; one each is needed")
        self._sources: list[Callable[..., Tensor] | str] = []
        for number, (energy, shape, clique) in enumerate(zip(energies, shapes, self.cliques, strict=True)):
            name = f"energy_{number + 1}"
            if not callable(energy) and not isinstance(energy, Tensor):
                energy = torch.as_tensor(energy, dtype=torch.get_default_dtype())
            if isinstance(energy, Tensor):
                energy = in_real_numbers(energy)
                if energy.shape != shape:
                    raise InputError(
                        f"the energies of clique {set(clique)} have the shape {tuple(energy.shape)}, but its variables "
                        f"have {shape} values"
                    )
                if isinstance(energy, nn.Parameter):
                    self.register_parameter(name, energy)
                else:
                    self.register_buffer(name, energy)
                self._sources.append(name)
            else:
                if isinstance(energy, nn.Module):
                    self.add_module(name, energy)
                self._sources.append(energy)
        for clique, table in zip(self.cliques, self.tables(), strict=True):
            if not torch.isfinite(table).all():
                raise InputError(
                    f"energies of the clique {clique} are not finite, which makes some evidence impossible; give "
                    "nearly impossible values a large finite energy, such as 50"
                )

    def tables(self) -> list[Tensor]:
        """The energies of each clique in all its states, (k_a, k_b, ...)."""
        found = []
        for source, clique in zip(self._sources, self.cliques, strict=True):
            if isinstance(source, str):
                found.append(getattr(self, source))
                continue
            shape = [self._size(i) for i in clique]
            states = torch.meshgrid(*(torch.arange(k, device=self.chains.device) for k in shape), indexing="ij")
            energies = in_real_numbers(source(*(values.flatten() for values in states)))
            if energies.numel() != math.prod(shape):
                raise InputError(
                    f"the energy of clique {set(clique)} gave {tuple(energies.shape)} for its {math.prod(shape)} "
                    f"states; let it give one number for each, ({math.prod(shape)},)"
                )
            found.append(energies.reshape(shape))
        return found

    def _size(self, variable: int) -> int:
        return self._sizes[variable - 1]

    # Exact inference.

    def log_z(self, given: Given | None = None) -> Tensor:
        """log ∑ exp(-E(x)) over the variables that are not given, () or (batch,)."""
        return self._summed((), self._evidence(given))

    def marginal(self, *variables: int, given: Given | None = None) -> Tensor:
        """p(x_a, x_b, ... | given), (k_a, k_b, ...) or (batch, k_a, k_b, ...).

        Args:
            *variables: numbers of the variables, from 1.
            given: values of other variables to condition on, if any.
        """
        if not variables:
            raise InputError("a marginal of no variable was asked for; give the numbers of some, from 1")
        variables, given = tuple(map(self._variable, variables)), self._evidence(given)
        if {*variables} & {*given} or len({*variables}) < len(variables):
            raise InputError(f"a marginal of X{variables} given X{(*given,)} names a variable twice")
        size = math.prod(map(self._size, variables))
        if (_batch(given) or 1) * size > LARGEST:
            raise InputError(
                f"the marginal of {len(variables)} variables is a table of {size:,} numbers, for each of "
                f"{_batch(given) or 1} datapoints, more than {LARGEST:,} in all; ask for fewer at a time"
            )
        logits = self._summed(variables, given)
        first = logits.dim() - len(variables)
        return logits.flatten(first).softmax(-1).reshape(logits.shape)

    @torch.no_grad()
    def mode(self, given: Given | None = None) -> Tensor:
        """The most probable x, (*event_shape) or (batch, *event_shape), as integers."""
        given = self._evidence(given)
        found = self._backwards(given, _batch(given) or 1, draws=False)
        return found if _batch(given) is not None else found.squeeze(0)

    @torch.no_grad()
    def exact_sample(self, size: int, given: Given | None = None) -> Tensor:
        """Independent draws (size, width), by elimination and then sampling backwards.

        Args:
            size: number of draws.
            given: values of some variables to condition on, for all draws or one per draw, (size,).
        """
        at_least_one(size=size)
        given = self._evidence(given)
        if _batch(given) not in (None, size):
            raise InputError(f"{_batch(given)} datapoints are given, but {size} draws were asked for; give as many")
        return self._backwards(given, size, draws=True).flatten(1).to(torch.get_default_dtype())

    def _variable(self, i: Any) -> int:
        if not is_whole(i):
            raise InputError(f"{i!r} is no variable; give its number, 1 to {self.event_shape.numel()}")
        if not 1 <= i <= self.event_shape.numel():
            raise InputError(f"there is no X{i}; the variables are X1 to X{self.event_shape.numel()}")
        return int(i)

    def _evidence(self, given: Given | None) -> Evidence:
        """The given values as integers, () or (batch,), on the model's device."""
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"given was {given!r}; name the variables, as in {{1: 0}}")
        found = {}
        for variable, value in (given or {}).items():
            i = self._variable(variable)
            values, last = as_numbers(self, value, f"X{i}"), self._size(i) - 1
            if values.dim() > 1 or not values.numel():
                raise InputError(f"X{i} was given with the shape {tuple(values.shape)}; give one value, or (batch,)")
            if not ((values >= 0) & (values <= last) & (values == values.round())).all():
                raise InputError(f"X{i} was given as {value}, but its values are the whole numbers from 0 to {last}")
            found[i] = values.long()
        lengths = {i: len(values) for i, values in found.items() if values.dim()}
        if len({*lengths.values()}) > 1:
            said = ", ".join(f"{length} of X{i}" for i, length in lengths.items())
            raise InputError(f"values were given of different numbers of datapoints: {said}; give as many of each")
        return found

    @property
    def tractable(self) -> bool:
        """Whether the tables of the elimination are small enough."""
        return self._plan().largest <= LARGEST

    def _plan(self, given: Collection[int] = (), kept: Collection[int] = ()) -> "_Plan":
        """The order in which variables that are neither given nor kept are eliminated: the smallest table first.

        The plan ends at the first table that is too large.
        """
        key = (frozenset(given), frozenset(kept))
        if key not in self._plans:
            near: dict[int, set[int]] = {i: {i} for i in range(1, self.event_shape.numel() + 1) if i not in given}
            for clique in self.cliques:
                for i in near.keys() & {*clique}:
                    near[i] |= near.keys() & {*clique}
            sizes = {i: math.prod(map(self._size, near[i])) for i in near if i not in kept}
            order, tables = [], [math.prod(map(self._size, kept))]
            while sizes and max(tables) <= LARGEST:
                i = min(sizes, key=sizes.__getitem__)
                order.append(i)
                tables.append(sizes.pop(i))
                for j in near[i] - {i}:
                    near[j] = (near[j] | near[i]) - {i}
                    if j in sizes:
                        sizes[j] = math.prod(map(self._size, near[j]))
            self._plans[key] = _Plan(order, max(tables), sum(tables))
        return self._plans[key]

    def _feasible(self, given: Evidence, kept: Sequence[int] = ()) -> "_Plan":
        """The plan of an elimination; refuses tables that are too large."""
        plan = self._plan(given, kept)
        if plan.largest > LARGEST:
            raise InputError(
                f"eliminating the variables would make a table of {plan.largest:,} numbers, more than {LARGEST:,}; "
                "the cliques are too large for exact sums: use chains (gibbs) and ais"
            )
        return plan

    def _factors(self, given: Evidence) -> list["_Factor"]:
        """-E_C at the given values, each over its other variables, (1 or batch, ...)."""
        factors = []
        for table, clique in zip(self.tables(), self.cliques, strict=True):
            free = tuple(i for i in clique if i not in given)
            values = [given[i].reshape(-1) for i in clique if i in given]
            last = table.permute(*map(clique.index, (*(i for i in clique if i in given), *free)))
            factors.append(_Factor(free, -(last[torch.broadcast_tensors(*values)] if values else last[None])))
        some = factors[0].table
        for i in range(1, self.event_shape.numel() + 1):  # a variable in no clique is uniform
            if i not in given and not any(i in clique for clique in self.cliques):
                factors.append(_Factor((i,), some.new_zeros(1, self._size(i))))
        return factors

    def _summed(self, kept: Sequence[int], given: Evidence) -> Tensor:
        """log ∑ exp(-E(x)) over variables neither given nor kept, (*kept) or (batch, *kept), a few rows at a time."""
        plan, parts = self._feasible(given, kept), []
        for some in _pieces(given, max(1, LARGEST // plan.total)):
            factors = self._factors(some)
            for i in plan.order:
                _, factors = _eliminated(factors, i, torch.logsumexp)
            table = functools.reduce(torch.add, (factor.over(tuple(sorted(kept))) for factor in factors))
            table = table.permute(0, *(1 + sorted(kept).index(i) for i in kept))
            parts.append(table.expand(_batch(some) or 1, *table.shape[1:]))
        return torch.cat(parts) if _batch(given) is not None else parts[0].squeeze(0)

    def _backwards(self, given: Evidence, size: int, *, draws: bool) -> Tensor:
        """Eliminates, then samples or maximises the variables in reverse order, (size, *event_shape)."""
        plan, parts = self._feasible(given), []
        for some in _pieces(given, max(1, LARGEST // plan.total)):
            rows = size if _batch(given) is None else _batch(some) or 1
            factors, met = self._factors(some), []
            for i in plan.order:
                joined, factors = _eliminated(factors, i, torch.logsumexp if draws else torch.amax)
                met.append(joined)
            x = torch.zeros(rows, self.event_shape.numel(), dtype=torch.int64, device=self.chains.device)
            for i, value in some.items():
                x[:, i - 1] = value
            for (*rest, i), table in reversed(met):
                row = torch.arange(rows, device=x.device) if len(table) > 1 else torch.zeros_like(x[:, 0])
                log_p = table[(row, *(x[:, j - 1] for j in rest))]
                # The index of the largest logit plus Gumbel noise is a draw.
                noise = torch.empty_like(log_p).exponential_().log() if draws else 0.0
                x[:, i - 1] = (log_p - noise).argmax(-1)
            parts.append(x)
        return torch.cat(parts).reshape(-1, *self.event_shape)

    # Chains and training.

    def free_energy(self, x: Any, y: Any = None) -> Tensor:
        """E(x) = ∑_C E_C(x_C), (batch,).

        Raises:
            InputError: x has another shape, or values outside the support.
        """
        return self.energy(*self.validated(x, y)[0].reshape(len(x), -1).long().T)

    def energy(self, *values: Any) -> Tensor:
        """E(x) at values of X1, X2, ..., integers whose shapes broadcast, as those of enumerated sites do.

        Raises:
            InputError: a value is outside the support of its variable.
        """
        states = [as_numbers(self, value, f"X{i}") for i, value in enumerate(values, 1)]
        if len(states) != self.event_shape.numel():
            raise InputError(f"{len(states)} values were given, but there are {self.event_shape.numel()} variables")
        for i, state in enumerate(states, 1):
            if not ((state == state.round()) & (state >= 0) & (state < self._size(i))).all():
                raise InputError(f"X{i} has values from 0 to {self._size(i) - 1}, but other numbers were given")
        return self._energy([state.long() for state in states])

    def _energy(self, states: Sequence[Tensor]) -> Tensor:
        terms = (
            table[tuple(states[i - 1] for i in clique)]
            for table, clique in zip(self.tables(), self.cliques, strict=True)
        )
        return functools.reduce(torch.add, terms)

    def log_density(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """-β E(x), (chains,), with a uniform base."""
        return -(beta * self._energy([*state.long().T])[:, None]).squeeze(-1)

    @torch.no_grad()
    def gibbs(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """One sweep in random order over blocks of variables, no two of which share a clique."""
        x = state.long()
        tables = self.tables()
        for block in torch.randperm(len(self.blocks)).tolist():
            for i in self.blocks[block]:
                energies = self._conditional_energy(i, x, tables)
                # The index of the largest logit plus Gumbel noise is a draw.
                x[:, i - 1] = (-beta * energies - torch.empty_like(energies).exponential_().log()).argmax(-1)
        return x.to(state.dtype)

    def _conditional_energy(self, variable: int, x: Tensor, tables: list[Tensor]) -> Tensor:
        """The energies of all values of one variable given the others, (chains, k)."""
        total = torch.zeros(len(x), self._size(variable), device=x.device, dtype=tables[0].dtype)
        for table, clique in zip(tables, self.cliques, strict=True):
            if variable in clique:
                at = clique.index(variable)
                others = [x[:, i - 1] for i in clique if i != variable]
                moved = table.movedim(at, -1)
                total = total + (moved[tuple(others)] if others else moved)
        return total

    def base(self, size: int) -> Tensor:
        """Uniform states (size, width)."""
        assert self.levels is not None
        device, dtype = device_and_dtype(self)
        return (torch.rand(size, len(self.levels), device=device, dtype=dtype) * self.levels).floor()

    def base_log_z(self) -> Tensor:
        """∑_i log k_i, ()."""
        assert self.levels is not None
        return self.levels.double().log().sum()

    def _colours(self) -> list[list[int]]:
        """Variables by colour in a greedy colouring, where each takes the smallest colour that no neighbour has."""
        colour: dict[int, int] = {}
        for i in range(1, self.event_shape.numel() + 1):
            taken = {colour.get(j) for clique in self.cliques if i in clique for j in clique}
            colour[i] = next(c for c in itertools.count() if c not in taken)
        return [[i for i in colour if colour[i] == c] for c in sorted({*colour.values()})]

    def factorisation(self) -> str:
        """The factorisation in words, such as p(X1, X2) = φ(X1, X2) / Z."""
        names = [", ".join(f"X{i}" for i in clique) for clique in self.cliques]
        return f"p(X1, ..., X{self.event_shape.numel()}) = {' '.join(f'φ({name})' for name in names)} / Z"

    def __str__(self) -> str:
        blocks = ", ".join("{" + ", ".join(f"X{i}" for i in block) + "}" for block in self.blocks)
        largest = self._plan().largest
        return "\n".join(
            [
                super().__str__(),
                f"  {self.factorisation()}, φ = exp(-energy)",
                f"  largest table of the elimination: {'' if self.tractable else 'at least '}{largest:,} numbers",
                f"  blocks of the Gibbs sampler: {blocks}",
            ]
        )


class _Plan(NamedTuple):
    """The order of an elimination, and the sizes of its largest table and of all tables."""

    order: list[int]
    largest: int
    total: int


class _Factor(NamedTuple):
    """A table (1 or batch, ...) of log-factors over variables."""

    variables: tuple[int, ...]
    table: Tensor

    def over(self, variables: tuple[int, ...]) -> Tensor:
        """The table with one dimension per variable in ascending order, of size 1 for those that it lacks."""
        order = sorted(range(len(self.variables)), key=self.variables.__getitem__)
        table = self.table.permute(0, *(1 + place for place in order))
        sizes = dict(zip(sorted(self.variables), table.shape[1:], strict=True))
        return table.reshape(len(table), *(sizes.get(i, 1) for i in variables))


def _eliminated(
    factors: list[_Factor], variable: int, reduce: Callable[[Tensor, int], Tensor]
) -> tuple[_Factor, list[_Factor]]:
    """The product of the factors of a variable (its last axis), and all factors after summing or maximising it."""
    own = [factor for factor in factors if variable in factor.variables]
    scope = tuple(sorted({i for factor in own for i in factor.variables}))
    table = functools.reduce(torch.add, (factor.over(scope) for factor in own)).movedim(1 + scope.index(variable), -1)
    rest = tuple(i for i in scope if i != variable)
    others = [factor for factor in factors if variable not in factor.variables]
    return _Factor((*rest, variable), table), [*others, _Factor(rest, reduce(table, -1))]


def _batch(given: Evidence) -> int | None:
    """The number of datapoints with given values; None if the values are scalars."""
    return next((len(values) for values in given.values() if values.dim()), None)


def _pieces(given: Evidence, rows: int) -> Iterator[Evidence]:
    """The given values, `rows` datapoints at a time."""
    for start in range(0, _batch(given) or 1, rows):
        yield {i: value[start : start + rows] if value.dim() else value for i, value in given.items()}


def _validated_cliques(cliques: list[list[int]], width: int) -> list[tuple[int, ...]]:
    if not cliques:
        raise InputError("a Markov network needs at least one clique, but none was given")
    for clique in cliques:
        if not clique or len({*clique}) < len(clique) or not all(1 <= i <= width for i in clique):
            raise InputError(f"{clique} is no clique: give distinct variables by their numbers, 1 to {width}")
    return [tuple(clique) for clique in cliques]
