"""Tables: a family, and a scaling, for each column."""

import inspect
import json
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from pyrolatent.declaration import (
    AUTO,
    Component,
    Declaration,
    Kind,
    PositiveInt,
    build,
    choices,
    component,
    register,
    registered,
)
from pyrolatent.errors import InputError
from pyrolatent.models.components import distributions as ours
from pyrolatent.models.components.families import Levels
from pyrolatent.models.components.family import Family, domain
from pyrolatent.models.components.scaling import Affine, Moments, Rows, Scaling, Unscaled

INFERRED: dict[str, Declaration] = {
    "real": "normal",
    "positive": {"normal": {"scaling": "log"}},
    "count": "negative_binomial",
    "binary": "bernoulli",
    "category": "categorical",
}
"""The family of each kind of column of a table."""
OF_OTHERS = (
    "columns", "categorical", "low_rank_normal", "multivariate_normal", "one_hot_categorical",
    "relaxed_one_hot_categorical",
)  # fmt: skip
"""Likelihoods that are no families of single numbers, or have another meaning for a column."""
COUNTS = "IntegerGreaterThan(lower_bound=0)"
SHOWN = 30
"""Number of columns that are printed one by one."""


@component("categorical", "family")
class Category(Family):
    """P(x = k) = softmax(u)_k over the codes k < K of categories; the mean is the most probable category.

    Args:
        event_shape: number of columns.
        categories: number of words of the column, 0 if it has none.
        levels: K; None is the number of words.
        embedding: width of the learned vectors by which encoders see categories; None for one-hot vectors.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        categories: int = 0,
        *,
        levels: Levels | None = None,
        embedding: PositiveInt | None = None,
    ) -> None:
        if levels is None and not categories:
            raise InputError("a categorical column of numbers needs the option levels, its number of categories")
        if categories and levels not in (None, categories):
            raise InputError(f"a categorical column was declared with levels {levels}, but has {categories} words")
        self.categories, self.embedding = levels or categories, embedding
        super().__init__(event_shape, ours.Codes, axes={"logits": self.categories})

    def __str__(self) -> str:
        return f"Categorical of {self.categories}"


@component("columns", "likelihood")
class Columns(Family):
    """p(x | z) = prod_c p_c(x_c | z): each column of a table by a family of its own (Nazabal et al. 2020, 1807.03653).

    Networks see categories one-hot or by learned vectors, and numbers by the scaling of their column.

    Args:
        event_shape: shape of a table, which knows its columns if it is `data.event_shape`.
        columns: the family of each column by its name, with its options and its `scaling`; "auto" infers it from the
            kind of the column: normal for real numbers, log-normal for positive ones, negative_binomial for counts,
            bernoulli for two values and categorical for words. Columns without names are "0", "1", .... `learned`
            parameters are one number for each column. The scaling "auto" is standardise for families over real numbers
            whose noise is not known and log1p for counts, which encoders alone see so.
    """

    whole = "columns"
    starts_at_data = True  # counts and rare words are far from where a network begins

    def __init__(self, event_shape: tuple[int, ...], *, columns: Annotated[Any, Kind("family", each=True)]) -> None:
        nn.Module.__init__(self)
        if len(event_shape) != 1:
            raise InputError(f"columns are those of a table, but x has the shape {tuple(event_shape)}")
        known = getattr(event_shape, "columns", None)
        self.names = [column.name for column in known] if known else [str(i) for i in range(event_shape[0])]
        self.words = [column.categories for column in known] if known else [()] * len(self.names)
        groups: dict[str, tuple[Any, int, list[int]]] = {}
        for i, declaration in enumerate(_declared(columns, self.names, known)):
            count = len(self.words[i])
            key = json.dumps([declaration, count], sort_keys=True, default=id)
            groups.setdefault(key, (declaration, count, []))[2].append(i)

        self.event_shape, self.event_dims = torch.Size(event_shape), 1
        parts, scalings = [], []
        for declaration, count, places in groups.values():
            names = ", ".join(self.names[place] for place in places[:5])
            try:
                family, scaling = _built(declaration, count, len(places))
            except InputError as error:
                raise InputError(f"column {names}: {error}") from error
            if count > 2 and not isinstance(family, Category):
                raise InputError(f"column {names} holds {count} words, which {family} is not over; declare categorical")
            parts.append(family)
            scalings.append(scaling)
        self.parts = nn.ModuleList(parts)
        index = [torch.tensor(places) for *_, places in groups.values()]
        self._widths = [part.unconstrained_shape[0] for part in parts]
        self.unconstrained_shape = torch.Size((sum(self._widths),))
        for i, of_part in enumerate(index):
            self.register_buffer(f"index_{i}", of_part, persistent=False)
        self.order: Tensor
        self.register_buffer("order", torch.cat(index).argsort(), persistent=False)
        self.measure = self._measured()
        self._own_scaling = (_Seen(self, scalings),)  # a tuple keeps it unregistered: it belongs to the model

    @property
    def own_scaling(self) -> "_Seen":
        """The scalings of the columns."""
        return self._own_scaling[0]

    @property
    def families(self) -> list[Any]:
        """The family of each column."""
        of_part = {place: part for part, index in self._parts for place in index.tolist()}
        return [of_part[place] for place in range(len(self.names))]

    @property
    def _parts(self) -> list[tuple[Any, Tensor]]:
        """The families of some columns each, and which."""
        return [(part, getattr(self, f"index_{i}")) for i, part in enumerate(self.parts)]

    def forward(self, unconstrained: Tensor) -> ours.Columns:
        """The distributions of all columns, side by side."""
        given = unconstrained.split(self._widths, -1)
        parts = [part(numbers) for (part, _), numbers in zip(self._parts, given, strict=True)]
        return ours.Columns(parts, [index for _, index in self._parts], self.order)

    def scale_by(self, scaling: Scaling) -> None:
        """Refuses any other scaling than those of the columns.

        Raises:
            InputError: it is another one.
        """
        if scaling is not self.own_scaling:
            raise InputError(
                f"each column has a scaling of its own, as in {{{self.names[0]}: {{normal: {{scaling: log1p}}}}}}; "
                "declare it there"
            )

    @property
    def has_free_units(self) -> bool:
        """False: what is true of a column is not of all."""
        return False

    def at_floor(self) -> bool:
        """Whether a learned parameter of any column is at its floor."""
        return any(part.at_floor() for part, _ in self._parts)

    def below_floor(self) -> int:
        """0: each part counts its own."""
        return 0

    def _measured(self) -> str:
        """mass, density, or which columns have which."""
        kinds = [family.measure for family in self.families]
        if len({*kinds}) == 1:
            return kinds[0]
        named = {kind: [name for name, one in zip(self.names, kinds, strict=True) if one == kind] for kind in kinds}
        rest = max(named, key=lambda kind: len(named[kind]))
        said = [f"{kind} of {', '.join(names)}" for kind, names in named.items() if kind != rest]
        return f"mixed ({'; '.join(said)}; {rest} of the other columns, in the units of the data)"

    def __str__(self) -> str:
        return f"{len(self.names)} columns"


class _Vectors(nn.Module):
    """Categories as vectors, v_c = table[x_c]: learned, or else one-hot.

    Args:
        columns: number of columns.
        family: their family.
    """

    def __init__(self, columns: int, family: Category) -> None:
        super().__init__()
        self.categories, self.width = family.categories, family.embedding or family.categories
        shape = columns, self.categories, self.width
        self.table = nn.Parameter(torch.randn(shape)) if family.embedding else None

    def one_hot(self, x: Tensor) -> Tensor:
        """Codes (..., columns) as (..., columns * categories), 0 or 1."""
        return (x.unsqueeze(-1) == torch.arange(self.categories, device=x.device)).to(x.dtype).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (..., columns) as (..., columns * width)."""
        if self.table is None:
            return self.one_hot(x)
        rows = x.long().clamp(0, self.categories - 1) + self.categories * torch.arange(x.shape[-1], device=x.device)
        return embedding(rows, self.table.flatten(0, 1)).flatten(-2)

    def __str__(self) -> str:
        return f"vectors of {self.width}"


class _Seen(Scaling):
    """What networks see of a table: numbers scaled by their column, and categories as vectors.

    Args:
        family: the families of the columns.
        scalings: the scaling of each of their parts; None for categories.
    """

    def __init__(self, family: Columns, scalings: list[Any]) -> None:
        parts = family._parts
        seen = [
            (_Vectors(len(index), part) if isinstance(part, Category) else scaling) or Unscaled((len(index),))
            for (part, index), scaling in zip(parts, scalings, strict=True)
        ]
        widths = [part.width if isinstance(part, _Vectors) else 1 for part in seen]
        columns = [index.repeat_interleave(width) for (_, index), width in zip(parts, widths, strict=True)]
        super().__init__((sum(map(len, columns)),))
        self.fitted, self.names = False, family.names
        self._lines = _lines(family, seen)
        self.parts = nn.ModuleList(seen)
        self.column: Tensor
        self.first: Tensor
        for i, (_, index) in enumerate(parts):
            self.register_buffer(f"index_{i}", index, persistent=False)
        self.register_buffer("column", torch.cat(columns), persistent=False)
        first = torch.cat([torch.arange(len(each)) % width == 0 for each, width in zip(columns, widths, strict=True)])
        self.register_buffer("first", first, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What networks see of x (..., columns), (..., *output_shape), 0 where it is not observed."""
        found = torch.cat([part(x.index_select(-1, index)) for part, index in self._parts], -1)
        return found if mask is None else torch.where(mask.index_select(-1, self.column), found, 0.0)

    def compared(self, x: Tensor) -> Tensor:
        """x (..., columns) as checks compare it: numbers as networks see them, and categories one-hot."""
        cells = ((part, x.index_select(-1, index)) for part, index in self._parts)
        return torch.cat([part.one_hot(of) if isinstance(part, _Vectors) else part(of) for part, of in cells], -1)

    def entries(self, x: Tensor) -> Tensor:
        """x as networks see it, in the order of the columns, where none is of categories."""
        return self(x).index_select(-1, self.column.argsort())

    def seen(self, mask: Tensor) -> Tensor:
        """The mask as networks receive it: a missing cell is one missing entry, the first of what they see of it."""
        return mask.index_select(-1, self.column) | ~self.first

    def validate_codes(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Refuses codes of no category in x (batch, columns).

        Raises:
            InputError: there are some; the message names the column.
        """
        for part, index in self._parts:
            if not isinstance(part, _Vectors):
                continue
            codes = x[..., index]
            wrong = (codes < 0) | (codes >= part.categories) | (codes != codes.round())
            wrong = wrong if mask is None else wrong & mask[..., index]
            if wrong.any():
                row, place = wrong.nonzero()[0].tolist()
                raise InputError(
                    f"column {self.names[index[place]]} holds {codes[row, place]:g} in row {row}, but its categories "
                    f"have the codes 0 to {part.categories - 1}"
                )

    def fit(self, rows: Rows) -> None:
        """Fits the scaling of each column."""
        fitted = [(part, index, Moments(part.loc)) for part, index in self._parts if isinstance(part, Affine)]
        for x, _, mask in rows:
            for part, index, moments in fitted:
                moments.add(part.inner(x[..., index]), None if mask is None else mask[..., index])
        for part, index, moments in fitted:
            part.set(moments, [self.names[i] for i in index.tolist()])
        self.fitted = True

    def warn_if_far(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Warns if the data of any column are far from those that its scaling was fitted to."""
        for part, index in self._parts:
            if isinstance(part, Affine):
                part.warn_if_far(x[..., index], None if mask is None else mask[..., index])

    @property
    def lines(self) -> list[str]:
        """A line for each column."""
        return self._lines

    @property
    def _parts(self) -> list[tuple[Any, Tensor]]:
        """What networks see of some columns each, and which."""
        return [(part, getattr(self, f"index_{i}")) for i, part in enumerate(self.parts)]


def _lines(family: Columns, seen: list[Any]) -> list[str]:
    """A line for each column: its family, and what networks see of it."""
    of_part = dict(zip((part for part, _ in family._parts), seen, strict=True))
    width = max(map(len, family.names[:SHOWN]))
    lines = []
    for name, words, part in [*zip(family.names, family.words, family.families, strict=True)][:SHOWN]:
        of_network = of_part[part]
        said = of_network.table is not None if isinstance(of_network, _Vectors) else of_network.changes
        sees = f", networks see {of_network}" if said else ""
        named = f" ({', '.join(words[:5])}{', ...' * (len(words) > 5)})" if words else ""
        lines.append(f"{name:<{width}} ~ {part}{named}{sees}")
    return lines + [f"and {len(family.names) - SHOWN} more columns"] * (len(family.names) > SHOWN)


def _declared(columns: Any, names: list[str], known: Any) -> list[Any]:
    """The declaration of each column, in their order.

    Raises:
        InputError: they are to be inferred without kinds, or are not those of the table.
    """
    if columns == AUTO:
        if known is None:
            raise InputError("columns: auto infers families from the columns of the data; give data.event_shape")
        return [INFERRED[column.kind] for column in known]
    if unknown := next((name for name in columns if name not in names), None):
        raise InputError(f"there is no column {unknown!r}; {choices(unknown, names)}")
    if missing := [name for name in names if name not in columns]:
        raise InputError(f"columns has no family for {', '.join(missing)}; declare one for each, or columns: auto")
    return [columns[name] for name in names]


def _built(declaration: Any, categories: int, width: int) -> tuple[Family, Any]:
    """The family of some columns, and its scaling; None for categories.

    Raises:
        InputError: it is no family of single numbers.
    """
    built = build("family", declaration, event_shape=(width,), categories=categories)
    family, scaling = built if isinstance(built, tuple) else (built, AUTO)
    if not isinstance(family, Family) or family.event_dims != 1 or family.event_shape != (width,):
        raise InputError(f"a column is one number, but {family} is not over single numbers")
    if isinstance(family, Category):
        return family, None
    counts = domain(family(torch.zeros(family.unconstrained_shape)).support) == COUNTS
    scaling = "log1p" if counts and scaling == AUTO else scaling
    built = build("scaling", scaling, event_shape=(width,), family=family)
    family.scale_by(built)
    return family, built


def _in_a_column(likelihood: Component) -> Component:
    """A likelihood as the family of a column, with a scaling."""

    def column(event_shape: tuple[int, ...], *, scaling: Any = AUTO, **options: Any) -> tuple[Any, Any]:
        each = {name: "learned_each" if value == "learned" else value for name, value in options.items()}
        return likelihood.target(event_shape, **each), scaling

    shape, scaling, _ = inspect.signature(column).parameters.values()
    scaling = scaling.replace(annotation=Annotated[Any, Kind("scaling")])
    parameters = [shape, *likelihood.options.values(), scaling]
    column.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    column.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    column.__module__ = likelihood.target.__module__
    about = inspect.cleandoc(likelihood.target.__doc__ or "")
    column.__doc__ = about + "\n\nArgs:" * ("Args:" not in about) + "\n    scaling: how networks see the column."
    column.like = likelihood.target  # type: ignore[attr-defined]
    return Component(column, ("event_shape",))


def _of_numbers(name: str) -> bool:
    """Whether a likelihood is a family of single numbers, as far as its class says."""
    support = getattr(getattr(dist, name, None), "support", None)
    return name not in OF_OTHERS and getattr(support, "event_dim", 0) == 0


for _name, _likelihood in registered("likelihood").items():
    if _of_numbers(_name):
        register("family", _name, _in_a_column(_likelihood))
