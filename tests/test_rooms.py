"""The laws of the house, read from the syntax: imports and when they happen, lengths, names."""

import ast
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from vlalign.registry import REGISTRIES

ROOT = Path(__file__).parents[1]
HOUSE = sorted((ROOT / "vlalign").rglob("*.py"))
FILES = HOUSE + sorted((ROOT / "tests").rglob("*.py"))
INNER = {"ops", "types", "specs", "registry", "files", "threads"}
OUTER = INNER | {"objectives", "weighters", "supervision", "data", "models", "tasks", "evals", "recipe"}
MAY_IMPORT: dict[str, set[str]] = {  # besides itself
    "types": set(),
    "specs": {"types"},
    "registry": set(),
    "files": set(),
    "threads": set(),
    "ops": INNER,
    "recipe": INNER - {"ops"},
    **dict.fromkeys(("objectives", "weighters", "supervision", "data", "models"), INNER),
    **dict.fromkeys(("tasks", "evals"), INNER | {"recipe.schemas"}),
    **dict.fromkeys(("train", "infer"), OUTER),  # never each other
    **dict.fromkeys(("cli", "__main__", "__init__"), OUTER | {"train", "infer", "cli"}),
}
HEAVY = {
    "transformers",
    "open_clip",
    "timm",
    "peft",
    "accelerate",
    "deepspeed",
    "datasets",
    "faiss",
    "sklearn",
}
HEAVY |= {"matplotlib", "torchvision", "pyarrow", "openai"}
NAMELESS = {"utils", "helpers", "common", "base", "manager", "misc"}
COMPONENTS = {package for registry in REGISTRIES.values() for package in registry.packages}
Faults = Iterator[tuple[int, str]]


def dotted(path: Path) -> str:
    """`vlalign/ops/table.py` -> `vlalign.ops.table`; a package is called as its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def nodes(tree: ast.AST, deferred: bool = True) -> Iterator[ast.AST]:
    """Every node; without `deferred` only what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if deferred or not (typing or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield node
            yield from nodes(node, deferred)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, deferred: bool = True) -> Faults:
    """Lines and dotted names of what a module imports; a name out of a package is `package.name`."""
    for node in nodes(parse(path), deferred):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "." * node.level + f"{node.module}.{it.name}") for it in node.names)


def is_component(path: Path) -> bool:
    return dotted(path.parent) in COMPONENTS and path.stem != "__init__"


def is_quick(path: Path) -> bool:
    return is_component(path) or room_of(path) in ("recipe", "cli")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "vlalign").parts[0].removesuffix(".py")


def rooms_import_only_what_they_may(path: Path) -> Faults:
    room = room_of(path)
    if room not in MAY_IMPORT:
        yield 1, f"'{room}' is no room"
        return
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        if not package:
            yield line, f"write {name} with its full name"
        allowed = MAY_IMPORT[room] | {room, "__version__"}
        if package == "vlalign" and not any(f"{rest}.".startswith(f"{other}.") for other in allowed):
            yield line, f"{room} may not import {name}, only {', '.join(sorted(allowed))}"


def files_are_short(path: Path) -> Faults:
    room = dotted(path.parent)
    limit = 400 if path not in HOUSE else 120 if room in COMPONENTS - {"vlalign.tasks"} else 200
    limit += 100 * (path.name == "types.py")  # every noun of the house, and what it promises
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > limit:
        yield limit, f"{lines} lines, at most {limit}"


def packages_hold_docstring_and_exports_only(path: Path) -> Faults:
    if path.name != "__init__.py" or path.parent == ROOT / "vlalign":  # that one imports its names lazily
        return
    tree = parse(path)
    if ast.get_docstring(tree) is None:
        yield 1, "no docstring"
    for node in tree.body[1:]:
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not exports and not isinstance(node, ast.Import | ast.ImportFrom):
            yield node.lineno, "only a docstring, imports and __all__ belong here"


def names_say_something(path: Path) -> Faults:
    if NAMELESS & {path.stem, path.parent.name}:
        yield 1, f"the name says nothing; choose another than {', '.join(sorted(NAMELESS))}"


def a_component_is_alone_in_the_module_of_its_name(path: Path) -> Faults:
    calls = [call for node in nodes(parse(path)) for call in getattr(node, "decorator_list", ())]
    found = [ast.unparse(call.args[0]) for call in calls if "register(" in ast.unparse(call)]
    due = [repr(path.stem)] if is_component(path) else []
    if found != due:
        line = next((call.lineno for call in calls if "register(" in ast.unparse(call)), 1)
        yield (
            line,
            f"registers {', '.join(found) or 'nothing'}, should register {', '.join(due) or 'nothing'}",
        )


def heavy_packages_wait_until_they_are_used(path: Path) -> Faults:
    """Of components, recipes and the command line, and of what these import when they are imported."""
    if path in QUICK:
        for line, name in imports(path, deferred=False):
            if name.partition(".")[0] in HEAVY:
                yield line, f"import {name} inside the function that needs it"


def the_command_line_has_no_tensors(path: Path) -> Faults:
    if room_of(path) == "cli":
        for line, name in imports(path):
            if name.partition(".")[0] == "torch":
                yield line, "torch belongs to the rooms behind the command line"


def closure(roots: list[Path]) -> list[Path]:
    """The modules, and those of ours that importing them imports."""
    named = {dotted(path): path for path in HOUSE}
    for path in roots:  # grows while it is walked
        for _, name in imports(path, deferred=False):
            ours = named.get(name) or named.get(name.rpartition(".")[0])
            if ours and ours not in roots:
                roots.append(ours)
    return roots


QUICK = closure([path for path in HOUSE if is_quick(path)])
LAWS = [
    (rooms_import_only_what_they_may, HOUSE),
    (files_are_short, FILES),
    (packages_hold_docstring_and_exports_only, HOUSE),
    (names_say_something, FILES),
    (a_component_is_alone_in_the_module_of_its_name, HOUSE),
    (heavy_packages_wait_until_they_are_used, HOUSE),
    (the_command_line_has_no_tensors, HOUSE),
]


@pytest.mark.parametrize(("law", "paths"), LAWS, ids=[law.__name__ for law, _ in LAWS])
def test_law(law: Callable[[Path], Faults], paths: list[Path]) -> None:
    faults = [f"{path.relative_to(ROOT)}:{line}: {told}" for path in paths for line, told in law(path)]
    assert not faults, "\n" + "\n".join(faults)


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    """pytest leaves out a folder called `dist` unless it is told not to."""
    left_out = pytestconfig.getini("norecursedirs")
    parts = {part for path in FILES if path not in HOUSE for part in path.relative_to(ROOT).parts[:-1]}
    assert not [(part, pattern) for part in parts for pattern in left_out if fnmatch(part, pattern)]
