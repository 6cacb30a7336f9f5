"""Markov networks: products of positive factors over cliques, summed exactly by variable elimination."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import opt_einsum
import torch
from annotated_types import Gt
from pyro.ops.contract import einsum
from pyro.ops.einsum.adjoint import require_backward
from torch import Tensor, nn
from torch.distributions import constraints

from pyrolatent.declaration import component
from pyrolatent.errors import InputError
from pyrolatent.models.unnormalised import Beta, UnnormalisedDensity

LARGEST = 2**24
"""Numbers in the largest table that an elimination may make."""

Energies = Sequence[Tensor | nn.Module | Callable[..., Tensor]]
Given = Mapping[int, Tensor | int]
"""Values, () or (batch,), by the number of their variable."""


@component("model", "markov_network")
class MarkovNetwork(UnnormalisedDensity):
    """p(x) = exp(-∑_C E_C(x_C)) / Z over discrete variables X1, ..., XD, one energy for each clique C.

    Everything exact is a contraction of the factors exp(-E_C), in log space and in an order that opt_einsum chooses
    (variable elimination); its cost grows with the largest table on the way, not with the number of joint states.

    Args:
        event_shape: shape of one datapoint; its flattened entries, whole numbers from 0, are X1, X2, ...
        cliques: the variables of each clique by their numbers from 1.
        cardinality: number of values of each variable, or one for all.
        spread: standard deviation of the learned energies' initial values.
        energies: one for each clique: an array of energies (k_a, k_b, ...), fixed, or a parameter, or a function or
            module of the clique's values (states,), (states,), ... that gives energies (states,). None: learned
            tables. In Python only.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        cliques: list[list[int]],
        cardinality: list[int] | Annotated[int, Gt(1)] = 2,
        spread: Annotated[float, Gt(0)] = 0.01,
        energies: Any = None,
    ) -> None:
        width = torch.Size(event_shape).numel()
        sizes = [cardinality] * width if isinstance(cardinality, int) else list(cardinality)
        if len(sizes) != width:
            raise InputError(f"cardinality lists {len(sizes)} variables, but x has {width} entries")
        levels = torch.tensor(sizes)
        super().__init__(event_shape, constraints.integer_interval(0, (levels - 1).reshape(event_shape)), levels)
        self.cliques = _checked_cliques(cliques, width)
        shapes = [tuple(sizes[i - 1] for i in clique) for clique in self.cliques]
        if energies is None:
            energies = [nn.Parameter(spread * torch.randn(shape)) for shape in shapes]
        self._keep(energies, shapes)
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

    def tables(self) -> list[Tensor]:
        """The energies of each clique in all its states, (k_a, k_b, ...)."""
        found = []
        for source, clique in zip(self._sources, self.cliques, strict=True):
            if isinstance(source, str):
                found.append(getattr(self, source))
                continue
            shape = [self._size(i) for i in clique]
            states = torch.meshgrid(*(torch.arange(k, device=self.chains.device) for k in shape), indexing="ij")
            found.append(source(*(values.flatten() for values in states)).reshape(shape))
        return found

    def _size(self, variable: int) -> int:
        assert self.levels is not None
        return int(self.levels[variable - 1])

    # What is exact.

    def log_z(self, given: Given | None = None) -> Tensor:
        """log ∑ exp(-E(x)) over all variables that are not given, () or (batch,)."""
        given = self._checked(given)
        total = self._contract("", given)
        return total if _batched(given) else total.squeeze(0)

    def marginal(self, *variables: int, given: Given | None = None) -> Tensor:
        """p(x_a, x_b, ... | given), (k_a, k_b, ...) or (batch, k_a, k_b, ...).

        Args:
            *variables: numbers, from 1.
            given: values of other variables; without any this is the marginal.
        """
        if not variables:
            raise InputError("a marginal of no variable was asked for; give the numbers of some, from 1")
        given = self._checked(given, variables)
        if {*variables} & {*given} or len({*variables}) < len(variables):
            raise InputError(f"a marginal of X{variables} given X{(*given,)} names a variable twice")
        logits = self._contract("".join(map(_symbol, variables)), given)
        table = logits.flatten(1).softmax(-1).reshape(logits.shape)
        return table if _batched(given) else table.squeeze(0)

    @torch.no_grad()
    def mode(self, given: Given | None = None) -> Tensor:
        """The most probable x, (*event_shape) or (batch, *event_shape), as whole numbers."""
        given = self._checked(given)
        found = self._backwards("map", given, 1)
        return found if _batched(given) else found.squeeze(0)

    @torch.no_grad()
    def exact_sample(self, size: int, given: Given | None = None) -> Tensor:
        """Independent draws (size, width) by elimination and then drawing backwards, those of `given` as they are."""
        return self._backwards("sample", self._checked(given), size).flatten(1).to(torch.get_default_dtype())

    def _checked(self, given: Given | None, others: Sequence[int] = ()) -> Given:
        given = given or {}
        for i in (*others, *given):
            if not 1 <= i <= self.event_shape.numel():
                raise InputError(f"there is no X{i}; the variables are X1 to X{self.event_shape.numel()}")
        for i, value in given.items():
            values, last = torch.as_tensor(value), self._size(i) - 1
            if not ((values >= 0) & (values <= last) & (values == values.round())).all():
                raise InputError(f"X{i} was given as {value}, but its values are the whole numbers from 0 to {last}")
        return given

    @property
    def tractable(self) -> bool:
        """Whether the tables that elimination makes are small enough."""
        return self._largest <= LARGEST

    @functools.cached_property
    def _largest(self) -> int:
        shapes = [(1, *(self._size(i) for i in clique)) for clique in self.cliques]
        _, path = opt_einsum.contract_path(self._equation(""), *shapes, shapes=True)
        return int(max(*path.size_list, *(math.prod(shape) for shape in shapes)))

    def _equation(self, output: str, given: Given | None = None) -> str:
        kept = [[i for i in clique if i not in (given or {})] for clique in self.cliques]
        return ",".join(_PLATE + "".join(map(_symbol, clique)) for clique in kept) + f"->{_PLATE}{output}"

    def _factors(self, given: Given, size: int | None = None) -> list[Tensor]:
        """log-factors with what is given selected, each (batch, ...) with as many more dimensions as are not."""
        batch = next((len(value) for value in map(torch.as_tensor, given.values()) if value.dim()), 1)
        factors = []
        for table, clique in zip(self.tables(), self.cliques, strict=True):
            order = [clique.index(i) for i in clique if i in given] + [
                clique.index(i) for i in clique if i not in given
            ]
            index = [torch.as_tensor(given[i], device=table.device).long().expand(batch) for i in clique if i in given]
            chosen = table.permute(order)[tuple(index)] if index else table.expand(batch, *table.shape)
            factors.append(-chosen if size is None else -chosen.expand(size, *chosen.shape[1:]))
        return factors

    def _contract(self, output: str, given: Given) -> Tensor:
        if self._largest > LARGEST:
            raise InputError(
                f"eliminating the variables would make a table of {self._largest:,} numbers, more than {LARGEST:,}; "
                "the cliques are too large for exact sums: use chains (gibbs) and ais"
            )
        factors = self._factors(given)
        free = [i for i in range(1, self.event_shape.numel() + 1) if i not in given and not self._has(i)]
        for i in free:  # a variable in no clique is uniform
            factors.append(factors[0].new_zeros(len(factors[0]), self._size(i)))
        inputs, result = self._equation(output, given).split("->")
        equation = ",".join([inputs, *(_PLATE + _symbol(i) for i in free)]) + f"->{result}"
        return opt_einsum.contract(equation, *factors, backend="pyro.ops.einsum.torch_log")

    def _has(self, variable: int) -> bool:
        return any(variable in clique for clique in self.cliques)

    def _backwards(self, what: str, given: Given, size: int) -> Tensor:
        """Eliminates, then goes back from the last table to the first: maximises or draws, (batch, *event_shape)."""
        if self._largest > LARGEST:
            self._contract("", given)  # says why not
        factors = self._factors(given, None if _batched(given) else size)
        batch = len(factors[0])
        factors = [factor.contiguous() for factor in factors]
        for factor in factors:
            require_backward(factor)
        backend = f"pyro.ops.einsum.torch_{what}"
        equation = self._equation("", given)
        (total,) = einsum(equation, *factors, plates=_PLATE, modulo_total=True, backend=backend)
        total._pyro_backward()
        x = torch.zeros(batch, self.event_shape.numel(), dtype=torch.int64, device=factors[0].device)
        for i in range(1, x.shape[1] + 1):
            if i in given:
                x[:, i - 1] = torch.as_tensor(given[i], device=x.device)
            elif not self._has(i):
                x[:, i - 1] = torch.randint(self._size(i), (batch,)) if what == "sample" else 0
        for factor in factors:
            found = factor._pyro_backward_result  # type: ignore[attr-defined]
            if found is not None:
                for place, symbol in enumerate(found._pyro_sample_dims):
                    x[:, _variable(symbol) - 1] = found[place]
        return x.reshape(batch, *self.event_shape)

    # What chains and training ask for.

    def free_energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x) = ∑_C E_C(x_C), (batch,)."""
        return self.energy(*x.reshape(len(x), -1).long().T)

    def energy(self, *values: Tensor) -> Tensor:
        """E(x) of the values of X1, X2, ..., whole numbers whose shapes broadcast, as enumerated sites' do."""
        terms = (
            table[tuple(values[i - 1] for i in clique)]
            for table, clique in zip(self.tables(), self.cliques, strict=True)
        )
        return functools.reduce(torch.add, terms)

    def log_density(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """-β E(x), (chains,): the base is uniform."""
        return -(beta * self.free_energy(state)[:, None]).squeeze(-1)

    @torch.no_grad()
    def gibbs(self, state: Tensor, beta: Beta = 1.0) -> Tensor:
        """One sweep over blocks of variables no two of which share a clique, in a random order."""
        x = state.long()
        tables = self.tables()
        for block in torch.randperm(len(self.blocks)).tolist():
            for i in self.blocks[block]:
                energies = self._conditional_energy(i, x, tables)
                # The largest of logits plus Gumbel noise is a draw.
                x[:, i - 1] = (-beta * energies - torch.empty_like(energies).exponential_().log()).argmax(-1)
        return x.to(state.dtype)

    def _conditional_energy(self, variable: int, x: Tensor, tables: list[Tensor]) -> Tensor:
        """The energies of all values of one variable, the others held, (chains, k)."""
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
        levels = self.levels.to(self.chains.device)
        return (torch.rand(size, len(levels), device=levels.device) * levels).floor()

    def base_log_z(self) -> Tensor:
        """∑_i log k_i, ()."""
        assert self.levels is not None
        return self.levels.double().log().sum()

    def _colours(self) -> list[list[int]]:
        """Variables by colour: greedily, the smallest number that no neighbour has."""
        colour: dict[int, int] = {}
        for i in range(1, self.event_shape.numel() + 1):
            taken = {colour.get(j) for clique in self.cliques if i in clique for j in clique}
            colour[i] = next(c for c in itertools.count() if c not in taken)
        return [[i for i in colour if colour[i] == c] for c in sorted({*colour.values()})]

    def factorisation(self) -> str:
        """p(x) as its factors are multiplied: p(X1, X2) = φ(X1, X2) / Z."""
        names = [", ".join(f"X{i}" for i in clique) for clique in self.cliques]
        return f"p(X1, ..., X{self.event_shape.numel()}) = {' '.join(f'φ({name})' for name in names)} / Z"

    def __str__(self) -> str:
        blocks = ", ".join("{" + ", ".join(f"X{i}" for i in block) + "}" for block in self.blocks)
        return "\n".join(
            [
                super().__str__(),
                f"  {self.factorisation()}, φ = exp(-energy)",
                f"  largest table of the elimination: {self._largest:,} numbers",
                f"  blocks of the Gibbs sampler: {blocks}",
            ]
        )


_PLATE = opt_einsum.get_symbol(0)


def _symbol(variable: int) -> str:
    return opt_einsum.get_symbol(variable)


def _variable(symbol: str) -> int:
    return next(i for i in itertools.count() if opt_einsum.get_symbol(i) == symbol)


def _batched(given: Given) -> bool:
    return any(torch.as_tensor(value).dim() for value in given.values())


def _checked_cliques(cliques: list[list[int]], width: int) -> list[tuple[int, ...]]:
    if not cliques:
        raise InputError("a Markov network needs at least one clique, but none was given")
    for clique in cliques:
        if not clique or len({*clique}) < len(clique) or not all(1 <= i <= width for i in clique):
            raise InputError(f"{clique} is no clique: give distinct variables by their numbers, 1 to {width}")
    return [tuple(clique) for clique in cliques]
