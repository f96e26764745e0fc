"""Names of components. A registry is a package or two: naming `dcl` imports its module `dcl`."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema

OUTSIDE = re.compile(r"[\w.]+:[\w.]+")  # `pkg.mod:Class`, which naming imports
Component = TypeVar("Component", bound=type)


class UnknownName(ValueError):
    """A name that no component has; the message suggests the nearest."""


def suggestion(name: str, known: list[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or nothing."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def name_of(component: type) -> str:
    """The name that a recipe calls this class by: the registered one, or `pkg.mod:Class`."""
    return component.__dict__.get("registered_name") or f"{component.__module__}:{component.__qualname__}"


class Registry:
    """Components of one kind. As a field's metadata, `Annotated[Objective, OBJECTIVES]`, it decodes it."""

    def __init__(self, kind: str, *packages: str) -> None:
        """`kind` is the word of messages; `packages` hold a module a component, named as registered."""
        self.kind, self.packages = kind, packages
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[Component], Component]:
        """Class decorator, outermost: the class becomes `name` in recipes, its fields their schema."""

        def keep(component: Component) -> Component:
            component.registered_name = name  # type: ignore[attr-defined]
            self._classes[name] = component
            return component

        return keep

    def names(self) -> list[str]:
        """Every name, from the modules of the packages, without importing them."""
        return sorted(self._homes())

    def _homes(self) -> dict[str, str]:
        """The package of each name."""
        paths = {package: importlib.import_module(package).__path__ for package in self.packages}
        return {
            module.name: package
            for package, path in paths.items()
            for module in pkgutil.iter_modules(path)
            if not module.ispkg
        }

    def get(self, name: str) -> type:
        """The class of a name or of `pkg.mod:Class`. Raises UnknownName."""
        if OUTSIDE.fullmatch(name):
            return self._outside(name)
        if name not in self._classes:
            homes = self._homes()
            if name not in homes:
                hint, known = suggestion(name, sorted(homes)), ", ".join(sorted(homes)) or "none"
                raise UnknownName(f"unknown {self.kind} '{name}'.{hint} Known: {known}")
            importlib.import_module(f"{homes[name]}.{name}")
        return self._classes[name]

    def _outside(self, name: str) -> type:
        module, _, attribute = name.partition(":")
        try:
            component = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownName(f"{self.kind} '{name}' cannot be imported: {error}") from error
        if not is_dataclass(component):
            raise UnknownName(f"{self.kind} '{name}' is no dataclass; its fields are its recipe schema")
        return component if isinstance(component, type) else type(component)

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Decode `name`, or `{name: ..., its fields}`, into an instance; its mistakes keep their path."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.decode)

    def decode(self, value: Any) -> Any:
        """An instance from a recipe's value. Raises pydantic's ValidationError."""
        from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, to_json

        fields = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            raise PydanticCustomError(
                "no_name",
                "expected the name of a {kind} or a map with a 'name', got {found}",
                {"kind": self.kind, "found": repr(value)},
            )
        try:
            component = self.get(fields["name"])
        except UnknownName as error:
            told = PydanticCustomError("unknown_name", "{told}", {"told": str(error)})
            raise ValidationError.from_exception_data(
                self.kind, [InitErrorDetails(type=told, loc=("name",), input=fields["name"])]
            ) from None
        own = {key: item for key, item in fields.items() if key != "name"}
        return adapter(component).validate_json(to_json(own), strict=True)


@cache
def adapter(component: type) -> "TypeAdapter[Any]":
    """What validates a dataclass, and refuses fields that it does not have; slow to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(strict(component))


def strict(component: type) -> type:
    """Make pydantic refuse fields that a dataclass, or a dataclass inside it, does not have."""
    component.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    for hint in get_type_hints(component).values():
        for inner in _classes_in(hint):
            if is_dataclass(inner) and "__pydantic_config__" not in inner.__dict__:
                strict(inner)
    return component


def encode(value: Any, component: bool = False) -> Any:
    """Plain values of a recipe or a component, defaults written out; decoding them gives an equal one."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        plain = {"name": name_of(type(value))} if component else {}
        slots = {field.name: _is_slot(hints[field.name]) for field in fields(value)}
        return plain | {name: encode(getattr(value, name), slot) for name, slot in slots.items()}
    if isinstance(value, Mapping):
        return {key: encode(item, component) for key, item in value.items()}
    return [encode(item, component) for item in value] if isinstance(value, list | tuple) else value


def _is_slot(hint: Any) -> bool:
    """Whether a field, or the items of it, are components of a registry."""
    if get_origin(hint) is Annotated:
        return any(isinstance(item, Registry) for item in get_args(hint))
    return any(_is_slot(arg) for arg in get_args(hint))


def _classes_in(hint: Any) -> list[type]:
    if get_origin(hint) is Literal:
        return []
    return [hint] if isinstance(hint, type) else [cls for arg in get_args(hint) for cls in _classes_in(arg)]


MODELS = Registry("model", "vlalign.models.encoders", "vlalign.models.rerankers", "vlalign.models.generators")
TOWERS = Registry("tower", "vlalign.models.towers")
SOURCES = Registry("source", "vlalign.data.sources")
TEMPLATES = Registry("template", "vlalign.data.templates")
TASKS = Registry("task", "vlalign.tasks")
OBJECTIVES = Registry("objective", "vlalign.objectives")
EMBEDDING_OBJECTIVES = Registry("embedding objective", "vlalign.objectives.embedding")
ANSWER_OBJECTIVES = Registry("answer objective", "vlalign.objectives.answers")
TOKEN_OBJECTIVES = Registry("token objective", "vlalign.objectives.token")
WEIGHTERS = Registry("weighter", "vlalign.weighters")
TOKEN_WEIGHTERS = Registry("token weighter", "vlalign.weighters.token")
TARGETS = Registry("targets", "vlalign.supervision.targets")
SELECTORS = Registry("selector", "vlalign.supervision.selectors")
MIXERS = Registry("mixer", "vlalign.supervision.mixers")
ANNOTATORS = Registry("annotator", "vlalign.supervision.annotators")
IMPORTANCES = Registry("importance", "vlalign.supervision.importance")
SAMPLERS = Registry("sampler", "vlalign.data.samplers")
OPTIMIZERS = Registry("optimizer", "vlalign.train.optimizers")
SCHEDULES = Registry("schedule", "vlalign.train.schedules")
REFERENCES = Registry("reference", "vlalign.models.references")
EVALUATORS = Registry("evaluator", "vlalign.evals.evaluators")
JUDGES = Registry("judge", "vlalign.infer.judges")
REGISTRIES = {kind: value for kind, value in globals().items() if isinstance(value, Registry)}
