"""`vlalign methods`: the registries and the docstrings of their components are the manual."""

import re
from itertools import takewhile
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List and explain what a recipe can name.")


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None, typer.Argument(help="objective, weighter, source, ...", show_default=False)
    ] = None,
) -> None:
    """Every component by kind, with the first line of its documentation."""
    from vlalign.registry import REGISTRIES, UnknownName, suggestion

    kinds = {registry.kind: registry for registry in REGISTRIES.values()}
    if kind is not None and kind not in kinds:
        raise UnknownName(f"unknown kind '{kind}'.{suggestion(kind, list(kinds))} Known: {', '.join(kinds)}")
    for registry in kinds.values() if kind is None else [kinds[kind]]:
        print(f"{registry.kind}:")
        for name in registry.names():
            print(f"  {name:<18} {first_line(registry.get(name))}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A component's name, or a recipe's.", show_default=False)],
) -> None:
    """A component: what it is, where it comes from, its fields and defaults, and the recipes that show it."""
    from inspect import getdoc, getmodule

    from vlalign.cli.recipes import shipped
    from vlalign.registry import REGISTRIES, UnknownName, suggestion

    found = [registry for registry in REGISTRIES.values() if name in registry.names()]
    recipes = [path for path in shipped() if path.parent.name != "tiny"]
    own = [path for path in recipes if path.stem == name]
    if not found and not own:
        known = [each for registry in REGISTRIES.values() for each in registry.names()]
        raise UnknownName(
            f"no component is called '{name}'.{suggestion(name, known)} 'vlalign methods list' lists them"
        )
    for registry in found:
        component = registry.get(name)
        print(
            f"{registry.kind} {name}\n\n{getdoc(getmodule(component)) or ''}\n\n{getdoc(component) or ''}\n"
        )
        _show_fields(component)
    for path in own:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = takewhile(lambda line: line.startswith("#"), lines)
        print(f"recipe {path}\n\n" + "\n".join(line.removeprefix("#").strip() for line in head) + "\n")
    named = re.compile(rf"\b(name|objective|targets|sampler): {re.escape(name)}\b|[\[,] ?{re.escape(name)}\b")
    if used := [path for path in recipes if found and named.search(path.read_text(encoding="utf-8"))]:
        print("in " + ", ".join(str(path) for path in used))


def _show_fields(component: type) -> None:
    from dataclasses import MISSING, fields
    from inspect import formatannotation
    from typing import get_type_hints

    hints = get_type_hints(component)
    for field in fields(component):
        required = field.default is MISSING and field.default_factory is MISSING
        default = "required" if required else f"default {field.default!r}"
        print(f"  {field.name}: {formatannotation(hints[field.name])}  ({default})")
    print()


def first_line(component: type) -> str:
    """The first line of the module's documentation: name, authors, year, link."""
    from inspect import getdoc, getmodule

    return (getdoc(getmodule(component)) or "").partition("\n")[0]
