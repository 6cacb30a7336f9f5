"""Declaring components by name; the signature of a class is the schema of its declaration.

A *component* is a class. Its positional constructor parameters are supplied by the model, injected by name
(`latent_dim`, `event_shape`, ...); its keyword-only parameters are declared by the user. A constructor that takes
`**options` also has the keyword-only parameters of its base class, except those that its class lists as `fixed`; a
subclass of `Options` has its options as fields. So each option is written once. A declaration is one of

    "normal"                                 a name
    {"normal": {"scale": 0.1}}               a name with options
    "my_module:MyPrior"                      an import path, also with options
    MyPrior(latent_dim=2)                    an instance (in Python only)

A class that names one of its options as `whole` takes the value of that option in the place of the mapping of options:
`{"divide": 255}` is `Divide(by=255)`.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from annotated_types import Gt
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from pyrolatent.errors import InputError

Declaration = str | Mapping[str, Any]
AUTO = "auto"
"""What stands for declarations that are inferred."""
C = TypeVar("C", bound=type)
Modules = dict[str, Any]
Importer = Callable[..., Any]
PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Kind:
    """Marks a parameter that is itself a declaration: `prior: Annotated[Any, Kind("prior")] = "normal"`.

    Attributes:
        name: the kind of component.
        each: whether it is "auto", or a mapping of names of the user's own to declarations.
    """

    name: str
    each: bool = False


@dataclass_transform(kw_only_default=True, eq_default=False)
class Options:
    """Base class of components that take only options: a subclass is a keyword-only dataclass of them.

    Options are validated in the constructor. Setting one afterwards updates `declaration`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = "__init__" in vars(cls)  # it may take what it likes, and the base validates what it passes on
        dataclass(kw_only=True, eq=False, repr=False)(cls)
        if not own:
            _validate_when_built(cls, None, Component(cls, validates=True))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        declared = vars(self).get("declaration")
        if declared is not None and name in Component(type(self)).options:
            known, given = _named(declared, type(self).__name__)
            self.declaration = {known: {**(given or {}), name: value.item() if hasattr(value, "item") else value}}


@dataclass(frozen=True)
class Component:
    """Something that can be declared by name.

    Attributes:
        target: the class or function that is called.
        given: names of the parameters that the model supplies; None means the positional ones.
        validates: whether the target itself validates its options.
    """

    target: Callable[..., Any]
    given: tuple[str, ...] | None = None
    validates: bool = False

    @functools.cached_property
    def supplied(self) -> dict[str, inspect.Parameter]:
        """The parameters that the model supplies."""
        return {
            name: parameter
            for name, parameter in _parameters(self.target).items()
            if (parameter.kind is not parameter.KEYWORD_ONLY if self.given is None else name in self.given)
        }

    @functools.cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The parameters that a user may declare, with their annotations resolved."""
        return {name: p for name, p in _parameters(self.target).items() if name not in self.supplied}

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        text = " ".join((inspect.getdoc(self.target) or "").partition("\n\n")[0].split())
        return re.split(r"(?<!et al)\. ", text)[0].removesuffix(".")

    @property
    def documentation(self) -> dict[str, str]:
        """The description of each option, from "Args:" in the docstrings of the class and its base classes."""
        found: dict[str, str] = {}
        for owner in getattr(self.target, "__mro__", (self.target,)):
            arguments = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
            for entry in re.split(r"^    (?=\S)", arguments[1], flags=re.MULTILINE) if arguments else ():
                name, _, text = entry.partition(":")
                found.setdefault(name, " ".join(text.split()))
        return {name: found.get(name, "") for name in self.options}

    @property
    def whole(self) -> str | None:
        """The option whose value is declared in the place of a mapping of options; None for most components."""
        return getattr(self.target, "whole", None)

    def declared(self, name: str, options: Mapping[str, Any]) -> Declaration:
        """The declaration of these options under a name."""
        if not options:
            return name
        return {name: options[self.whole] if self.whole else options}

    def validate(self, options: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Validates options against the signature and returns them with their types converted.

        Args:
            options: what the user declared.
            path: place of the declaration, for messages, such as `model.vae`.

        Raises:
            InputError: an option is unknown or missing, or its value has the wrong type or range.
        """
        for name in map(str, options):
            if name not in self.options:
                why = "; options are keyword-only, and this one is positional" if name in self.supplied else ""
                raise InputError(f"{path} has no option {name!r}; {choices(name, self.options)}{why}")
        for name, parameter in self.options.items():
            if parameter.default is parameter.empty and name not in options:
                raise InputError(f"{path} needs the option {name!r}, which was not given")
        return {
            name: _validate_value(self.options[name], value, path if self.whole else f"{path}.{name}")
            for name, value in options.items()
        }


def component(name: str, *kinds: str) -> Callable[[C], C]:
    """Class decorator that registers a component: it can be declared by `name` where one of the kinds is expected.

    Options are validated whenever the class is constructed, by name or directly, and kept as `declaration`.
    """

    def decorate(cls: C) -> C:
        entry = Component(cls, validates=True)
        if cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
            for kind in kinds:
                registered(kind)  # register this package's components first, so that they cannot take the name later
        for kind in kinds:
            register(kind, name, entry)
        _validate_when_built(cls, name, entry)
        return cls

    return decorate


def _validate_when_built(cls: type, name: str | None, entry: Component) -> None:
    """Makes the constructor of a class validate its options and keep them as `declaration`.

    Args:
        cls: the class.
        name: name by which it is declared; None if it has none.
        entry: its signature.
    """
    own = cls.__init__  # type: ignore[misc]
    construct = own.__wrapped__ if cls in _components else own

    @functools.wraps(construct)
    def validated(self: Any, *args: Any, **kwargs: Any) -> None:
        if next(base for base in type(self).__mro__ if base in _components) is not cls:
            construct(self, *args, **kwargs)  # the subclass has already validated its options
            return
        supplied = {key: kwargs.pop(key) for key in entry.supplied if key in kwargs}
        options = entry.validate(kwargs, name or cls.__name__)
        construct(self, *args, **supplied, **options)
        if type(self) is cls and name:
            self.declaration = entry.declared(name, options)  # type: ignore[attr-defined]

    validated.__signature__ = _written_out(construct, entry)  # type: ignore[attr-defined]
    cls.__init__ = validated  # type: ignore[misc]
    _components.add(cls)


def register(kind: str, name: str, entry: Component) -> None:
    """Makes a class or function of another library declarable by name.

    Raises:
        InputError: there is no such kind of component, or the name is taken by another one.
    """
    if kind not in _registry:
        raise InputError(f"there is no kind of component {kind!r} for {name!r}; {choices(kind, _registry)}")
    known = _registry[kind].get(name)
    if known is not None and _origin(known.target) != _origin(entry.target):
        raise InputError(f"{kind} {name!r} is {'.'.join(_origin(known.target))} already; choose another name")
    _registry[kind][name] = entry


def registered(kind: str) -> dict[str, Component]:
    """All components that can be declared by name as this kind."""
    for module in _KINDS.get(kind, ()):
        importlib.import_module(module)
    return dict(_registry.get(kind, {}))


def kinds() -> tuple[str, ...]:
    """The kinds of components."""
    return tuple(_registry)


def validate(kind: str, declaration: Any, path: str = "") -> Any:
    """Validates a declaration with everything inside it, before anything is built.

    Returns:
        The declaration with its options converted to their types; an instance is returned unchanged.

    Raises:
        InputError: the declaration is invalid; the message has the place, the value and the nearest valid spelling.
    """
    path = path or kind
    if not _is_declared(declaration, path):
        return declaration
    name, options, entry = _parse(declaration, path, kind)
    return entry.declared(name, entry.validate(options, f"{path}.{name}"))


def build(kind: str, declaration: Any, **supplied: Any) -> Any:
    """Builds a component from its declaration; an instance is returned unchanged.

    Args:
        kind: the expected kind: "prior", "likelihood", ...
        declaration: a name, a mapping of one name to its options, or an instance.
        **supplied: everything that the model can supply; a component receives what its positional parameters name.

    Raises:
        InputError: the declaration is invalid, or the component needs a parameter that the model does not supply.
    """
    if not _is_declared(declaration, kind):
        return declaration
    name, options, entry = _parse(declaration, kind, kind)
    unknown = [key for key, parameter in entry.supplied.items() if key not in supplied and _required(parameter)]
    if unknown:
        raise InputError(
            f"{kind} {name!r} asks for the positional parameter {unknown[0]!r}, but a {kind} is supplied with "
            f"{', '.join(supplied)}; make {unknown[0]!r} keyword-only if the user declares it"
        )
    if not entry.validates:
        options = entry.validate(options, name)
    given = {key: supplied[key] for key in entry.supplied if key in supplied}
    try:
        built = entry.target(**given, **options)
    except (TypeError, ValueError) as error:
        if entry.validates or ":" in name:
            raise
        raise InputError(f"{kind} {name} cannot be built: {' '.join(str(error).split())}") from error
    if ":" in name:
        built.declaration = entry.declared(name, options)
    return built


def target(kind: str, declaration: Any) -> Any:
    """The class or function that a declaration names; the class of an instance."""
    if not _is_declared(declaration, kind):
        return type(declaration)
    return _parse(declaration, kind, kind)[2].target


@contextmanager
def importing(importer: Importer) -> Iterator[None]:
    """Resolves import paths in declarations by `importer(path)` within this context."""
    token = _importer.set(importer)
    try:
        yield
    finally:
        _importer.reset(token)


def import_path(path: str, modules: Modules | None = None) -> Any:
    """Imports `package.module:Name`.

    Args:
        path: the import path.
        modules: modules that were run anew for one purpose, by name, to which this one is added; None: Python's own.

    Raises:
        InputError: the module or the name in it does not exist.
    """
    module, _, name = path.partition(":")
    try:
        if modules is None:
            return getattr(importlib.import_module(module), name)
        if module not in modules:
            spec: Any = importlib.util.find_spec(module)
            if spec is None:
                raise ModuleNotFoundError(name=module)
            modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[module])
        return getattr(modules[module], name)
    except ModuleNotFoundError as error:
        where = "is it beside the experiment or on the Python path?"
        raise InputError(f"{path}: there is no module {error.name!r}; {where}") from error
    except AttributeError as error:
        raise InputError(f"{path}: the module {module!r} has no {name!r}") from error


def imported(path: str, modules: Modules | None = None) -> Any:
    """What an import path means in the present `importing` context, its module run anew unless it is in `modules`."""
    importer = _importer.get()
    return importer(path) if modules is None else importer(path, modules)


def import_paths(declaration: Any) -> list[str]:
    """Every import path inside a declaration."""
    if isinstance(declaration, str):
        return [declaration] if _is_import_path(declaration) else []
    if isinstance(declaration, Mapping):
        return [path for item in declaration.items() for part in item for path in import_paths(part)]
    if isinstance(declaration, list | tuple):
        return [path for part in declaration for path in import_paths(part)]
    return []


def complete(kind: str, declaration: Any) -> Any:
    """A declaration with the defaults of this package's components written out, so that it survives changes of them."""
    if not isinstance(declaration, str | Mapping):
        return declaration
    name, given, entry = _parse(declaration, kind, kind)
    own = entry.target.__module__.partition(".")[0] == __name__.partition(".")[0]
    options = {
        option: _each(inner, value, complete) if (inner := _kind(parameter.annotation)) else value
        for option, parameter in entry.options.items()
        if (value := given.get(option, parameter.default if own else None)) is not None
    }
    return entry.declared(name, options)


def plain(declaration: Any) -> Any:
    """A declaration in YAML's own types.

    Raises:
        InputError: it contains an instance, which cannot be written in YAML.
    """
    if isinstance(declaration, Mapping):
        return {key: plain(value) for key, value in declaration.items()}
    if isinstance(declaration, list | tuple):
        return [plain(value) for value in declaration]
    if declaration is None or isinstance(declaration, str | bool | int | float):
        return declaration
    raise InputError(f"an instance of {type(declaration).__name__} cannot be written as a declaration; name it instead")


def declared_name(part: Any) -> str:
    """The name by which a component was declared, or the name of its class."""
    declared = getattr(part, "declaration", type(part).__name__)
    return declared if isinstance(declared, str) else next(iter(declared))


def choices(given: str, valid: Iterable[str]) -> str:
    """The valid choices for a message: `valid: a, b, c; did you mean 'b'?`."""
    valid = list(valid)
    nearest = difflib.get_close_matches(given, valid, n=1)
    listed = f"valid: {', '.join(valid)}" if valid else "it takes none"
    return listed + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def schema(kind: str) -> dict[str, Any]:
    """JSON schema of a declaration of this kind."""
    entries = registered(kind)
    bare = [name for name, entry in entries.items() if not any(map(_required, entry.options.values()))]
    return {
        "anyOf": [
            {"enum": bare},
            {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "import path, module:Class"},
            *(
                {
                    "type": "object",
                    "properties": {name: {"description": entry.summary, **_declared_schema(entry)}},
                    "required": [name],
                    "additionalProperties": False,
                }
                for name, entry in entries.items()
            ),
            {
                "type": "object",
                "patternProperties": {r"^[\w.]+:\w+$": {"type": ["object", "null"]}},
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
            },
        ]
    }


def _declared_schema(entry: Component) -> dict[str, Any]:
    """JSON schema of what is declared under the name of a component."""
    options = options_schema(entry)
    return options["properties"][entry.whole] if entry.whole else options


def options_schema(entry: Component) -> dict[str, Any]:
    """JSON schema of the options of one component."""
    properties = {}
    for name, parameter in entry.options.items():
        kind = _kind(parameter.annotation)
        properties[name] = {"$ref": f"#/$defs/{kind.name}"} if kind else _value_schema(parameter.annotation)
        if kind and kind.each:
            properties[name] = {
                "anyOf": [{"const": AUTO}, {"type": "object", "additionalProperties": properties[name]}]
            }
        if parameter.default is None and kind:
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    return {
        "type": ["object", "null"] if not any(map(_required, entry.options.values())) else "object",
        "properties": properties,
        "required": [name for name, parameter in entry.options.items() if _required(parameter)],
        "additionalProperties": False,
    }


_MODELS = ("pyrolatent.models",)
_OBJECTIVES = ("bounds", "exact", "per_datapoint", "contrastive", "score_matching")
_KINDS: dict[str, tuple[str, ...]] = {
    "model": _MODELS,
    "prior": _MODELS,
    "likelihood": _MODELS,
    "family": _MODELS,
    "posterior": _MODELS,
    "network": _MODELS,
    "missingness": _MODELS,
    "corruption": _MODELS,
    "scaling": _MODELS,
    "units": _MODELS,
    "kernel": ("pyrolatent.inference.sampling.kernels",),
    "objective": tuple(f"pyrolatent.inference.objectives.{name}" for name in _OBJECTIVES),
    "warmup": ("pyrolatent.inference.objectives.warmup",),
    "optimizer": ("pyrolatent.inference.training.optim",),
    "scheduler": ("pyrolatent.inference.training.optim",),
}
"""Kinds of components and the modules of this package that register them, imported on first use."""
_registry: dict[str, dict[str, Component]] = {kind: {} for kind in _KINDS}
_components: set[type] = set()
_importer: ContextVar[Importer] = ContextVar("importer", default=import_path)


def _is_import_path(text: str) -> bool:
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for path in (module, name) for part in path.split("."))


def _is_declared(declaration: Any, path: str) -> bool:
    """Whether this is a declaration rather than an instance; refuses anything else."""
    if declaration is None or isinstance(declaration, bool | int | float | list | tuple):
        raise InputError(f"{path} takes a name, or one name with its options, but was given {declaration!r}")
    return isinstance(declaration, str | Mapping)


def _parse(declaration: Declaration, path: str, kind: str) -> tuple[str, Mapping[str, Any], Component]:
    """The name, the options and the component of a declaration.

    Raises:
        InputError: it is not of this form, or there is no such component.
    """
    name, given = _named(declaration, path)
    entry = _find(kind, name, path)
    if entry.whole:
        return name, {} if given is None else {entry.whole: given}, entry
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"{path}.{name} takes its options as a mapping, but was given {given!r}")
    return name, given or {}, entry


def _named(declaration: Declaration, path: str) -> tuple[str, Any]:
    """The name in a declaration and what is declared under it."""
    if isinstance(declaration, str):
        return declaration, None
    if len(declaration) != 1:
        raise InputError(
            f"{path} takes one name, or one name with its options, but was given {len(declaration)}: "
            f"{', '.join(map(str, declaration)) or 'none'}"
        )
    ((name, options),) = declaration.items()
    if not isinstance(name, str):
        raise InputError(f"{path} takes a name, but was given {name!r}")
    return name, options


def _find(kind: str, name: str, path: str) -> Component:
    if _is_import_path(name):
        target = imported(name)
        if not callable(target):
            raise InputError(f"{path}: {name} is {target!r}, but a class was expected")
        return Component(target)
    entries = registered(kind)
    if name not in entries:
        own = "; a class of your own is declared as module:Class"
        raise InputError(f"there is no {kind} {name!r} ({path}); {choices(name, entries)}{own}")
    return entries[name]


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function, including those that `**options` passes on to a base class."""
    if not isinstance(target, type):
        return dict(_signature(target))
    found: dict[str, inspect.Parameter] = {}
    fixed: set[str] = set()
    positional = True  # the model supplies those of a base class if *args passes them on
    for base in target.__mro__:
        if "__init__" in vars(base):
            own = _signature(base.__init__)  # type: ignore[misc]
            for name, parameter in [*own.items()][1:]:
                if positional or (parameter.kind is parameter.KEYWORD_ONLY and name not in fixed):
                    found.setdefault(name, parameter)
            positional = positional and any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values())
            fixed |= {*vars(base).get("fixed", ())}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
                break
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in found.items() if parameter.kind not in variable}


def _written_out(constructor: Callable[..., Any], entry: Component) -> inspect.Signature:
    """The signature of a constructor with inherited options written out, for `help` and notebooks."""
    own = inspect.signature(constructor)
    first = next(iter(own.parameters.values()))
    options = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in entry.options.values()]
    return own.replace(parameters=[first, *entry.supplied.values(), *options])


def _origin(target: Callable[..., Any]) -> tuple[str, str]:
    return target.__module__, getattr(target, "__qualname__", type(target).__name__)


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of one function with their annotations resolved."""
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError):  # some third-party annotations cannot be evaluated
        hints = {}
    written = inspect.signature(inspect.unwrap(function)).parameters
    return {
        name: parameter.replace(annotation=hints.get(name, Any)) if name in written else parameter
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _kind(annotation: Any) -> Kind | None:
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((item for item in metadata if isinstance(item, Kind)), None)


def _each(kind: Kind, value: Any, function: Callable[..., Any], *path: str) -> Any:
    """A function of the kind and the declaration, and of its path, or of each declaration in a mapping of names."""
    if not kind.each:
        return function(kind.name, value, *path)
    if value == AUTO:
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{'.'.join(path)} takes {AUTO}, or a mapping of names to a {kind.name}, not {value!r}")
    return {str(name): function(kind.name, one, *[f"{p}.{name}" for p in path]) for name, one in value.items()}


def _validate_value(parameter: inspect.Parameter, value: Any, path: str) -> Any:
    kind = _kind(parameter.annotation)
    if kind:
        return value if value is None and parameter.default is None else _each(kind, value, validate, path)
    adapter = _adapter(parameter.annotation)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = dict.fromkeys(item["msg"].lower() for item in error.errors())
        raise InputError(f"{path} was given {value!r}: {'; or '.join(reasons)}") from error


def _value_schema(annotation: Any) -> dict[str, Any]:
    adapter = _adapter(annotation)
    return adapter.json_schema() if adapter else {}


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """The pydantic adapter of a type; None if there is none, as for tensors in signatures of torch."""
    try:
        return TypeAdapter(annotation) if annotation is not Any else None
    except PydanticSchemaGenerationError:
        return None
