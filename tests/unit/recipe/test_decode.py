import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Literal, get_type_hints

import pytest
from ruamel.yaml import YAML

from vlalign.recipe import schemas
from vlalign.recipe.decode import decode, differences, load_recipe, write
from vlalign.recipe.read import read
from vlalign.registry import Registry, UnknownName, encode, strict
from vlalign.types import RecipeError

PARTS = Registry("part", "vlalign_test_parts")
MODULE = """
from dataclasses import dataclass
from typing import Annotated
from tests.unit.recipe.test_decode import PARTS

@PARTS.register("{name}")
@dataclass(frozen=True, kw_only=True)
class {cls}:
    {fields}
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    n: int = 1
    sizes: tuple[float, float] = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    a: int
    b: int = 1
    c: float = 1.0

    def __post_init__(self) -> None:
        for name in ("a", "b", "c"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    verb: Literal["stub"]
    out: str
    part: Annotated[object, PARTS]
    parts: tuple[Annotated[object, PARTS], ...] = ()
    maybe: Annotated[object, PARTS] | None = None
    named: Mapping[str, Annotated[object, PARTS]] = field(default_factory=dict)
    inner: Inner = Inner()
    ranges: Ranges = Ranges(a=1)
    either: bool | Inner = False
    mode: Literal["fast", "slow"] = "slow"
    steps: int = 1
    rate: float = 0.5
    on: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    package = root / "vlalign_test_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plain.py").write_text(MODULE.format(name="plain", cls="Plain", fields="gamma: float = 2.0"))
    (package / "nest.py").write_text(
        MODULE.format(name="nest", cls="Nest", fields="inside: Annotated[object, PARTS]\n    size: int = 3")
    )
    sys.path.insert(0, str(root))
    schemas.VERBS["stub"] = Recipe
    yield
    sys.path.remove(str(root))
    del schemas.VERBS["stub"]


@pytest.fixture
def recipe(tmp_path):
    def put(text: str):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return path

    return put


GOOD = """\
verb: stub
out: x
part: {name: nest, inside: plain, size: 4}
parts: [plain, {name: plain, gamma: 1}]
"""


def mistakes(path, overrides=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value).splitlines()


def test_components_are_built_from_short_and_long_forms(recipe):
    loaded = load_recipe(recipe(GOOD))
    assert (loaded.part.size, loaded.part.inside.gamma, loaded.parts[0].gamma) == (4, 2.0, 2.0)
    assert type(loaded.parts[1].gamma) is float and loaded.maybe is None and loaded.inner == Inner()


def test_six_mistakes_are_told_at_once_each_with_its_line(recipe):
    path = recipe(
        "verb: stub\n"
        "outt: x\n"
        "part: {name: plan}\n"
        "parts:\n"
        "  - {name: plain, gama: 1}\n"
        "  - {name: nest, inside: {name: plain, gamma: hot}}\n"
        "inner: {n: true}\n"
        "steps: '10'\n"
    )
    assert mistakes(path) == [
        f"{path}: 6 mistakes",
        f"  {path}:2: outt: Recipe has no field 'outt'. Did you mean 'out'?",
        f"  {path}:3: part.name: unknown part 'plan'. Did you mean 'plain'? Known: nest, plain",
        f"  {path}:5: parts.0.gama: Plain has no field 'gama'. Did you mean 'gamma'?",
        f"  {path}:6: parts.1.inside.gamma: expected float, got 'hot' (str)",
        f"  {path}:7: inner.n: expected int, got True (bool)",
        f"  {path}:8: steps: expected int, got '10' (str)",
    ]


def test_several_ranges_of_one_component_and_a_wrong_type_beside_them_are_all_told(recipe):
    path = recipe(GOOD + "ranges: {a: 0, b: -1, c: hot}\neither: 3\n")
    assert mistakes(path, ["steps=0", "nowhere.x.y=1", "stepz"]) == [
        f"{path}: 7 mistakes",
        "  command line: 'stepz' is no override; write dotted.path=value",
        "  command line: nowhere: Recipe has no field 'nowhere'. Did you mean 'inner'?",
        "  command line: steps: must be >= 1, got 0",
        f"  {path}:5: ranges.a: must be >= 1, got 0",
        f"  {path}:5: ranges.b: must be >= 1, got -1",
        f"  {path}:5: ranges.c: expected float, got 'hot' (str)",
        f"  {path}:6: either: expected bool or map, got 3 (int)",
    ]


def test_the_branch_of_a_union_that_got_further_speaks(recipe):
    assert mistakes(recipe(GOOD + "either: {n: hot}\n"))[1:] == [
        f"  {recipe(GOOD + 'either: {n: hot}' + chr(10))}:5: either.n: expected int, got 'hot' (str)"
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("inner: {sizes: [1, 2, 3]}", "inner.sizes"),
        ("inner: 3", "inner: expected map, got 3 (int)"),
        ("mode: quick", "mode: input should be 'fast' or 'slow', got 'quick'"),
        ("steps: 0", "steps: must be >= 1, got 0"),
        ("steps: 1.5", "steps: "),
        ("on: 1", "on: expected bool, got 1 (int)"),
        ("rate: yes", "rate: expected float, got 'yes' (str)"),
        ("maybe: {gamma: 1}", "maybe: expected the name of a part or a map with a 'name', got {'gamma': 1}"),
        ("maybe: {name: plain, gamma: x}", "maybe.gamma: expected float"),
        ("maybe: 'os:system'", "is no dataclass"),
        ("named: {a: plain, b: {name: plain, gama: 1}}", "named.b.gama: Plain has no field 'gama'. Did you"),
        ("named: {b: {name: nest, inside: {name: plain, x: 1}}}", "Plain has no field 'x'. It has: gamma"),
        ("named: {b: {name: plain, gamma: hot}}", "named.b.gamma: expected float, got 'hot' (str)"),
        ("named: {b: {name: plan}}", "named.b.name: unknown part 'plan'. Did you mean 'plain'?"),
        ("named: [plain]", "named: expected "),
        ("maybe: 'no.such:Thing'", "cannot be imported"),
        ("inner: {m: 1}", "inner.m: Inner has no field 'm'. It has: n, sizes"),
    ],
)
def test_one_mistake_at_a_time(recipe, lines, told):
    head, line = mistakes(recipe(GOOD + lines + "\n"))
    assert head.endswith("1 mistake") and told in line and ":5: " in line


def test_a_mistake_on_the_command_line_blames_the_command_line(recipe):
    _, line = mistakes(recipe(GOOD), ["parts.0={name: plian}"])
    assert line.strip().startswith("command line: parts.0.name: unknown part 'plian'")


def test_a_missing_field_and_a_missing_or_wrong_verb(recipe):
    assert mistakes(recipe("verb: stub\nout: x\n"))[1].endswith("part: is missing")
    assert "verb: is missing. Known: train" in mistakes(recipe("out: x\n"))[0]
    assert "unknown verb 'trian'. Did you mean 'train'?" in mistakes(recipe("verb: trian\n"))[0]
    with pytest.raises(RecipeError, match="this is a recipe for 'vlalign stub', not for 'vlalign eval'"):
        load_recipe(recipe(GOOD), verb="eval")


def test_a_recipe_written_and_read_again_is_equal(recipe, tmp_path):
    loaded = load_recipe(recipe(GOOD))
    write(loaded, tmp_path / "new" / "out")
    again = load_recipe(tmp_path / "new" / "out" / "recipe.yaml")
    assert again == loaded
    plain = YAML(typ="safe").load((tmp_path / "new" / "out" / "recipe.yaml").read_text())
    assert plain["part"] == {"name": "nest", "inside": {"name": "plain", "gamma": 2.0}, "size": 4}
    assert plain["inner"] == {"n": 1, "sizes": [1.0, 2.0]}


def test_an_out_that_cannot_be_written_is_told(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="out: '.*file/out' cannot be written"):
        write(load_recipe(recipe(GOOD)), tmp_path / "file" / "out")


def test_differences_name_their_paths(recipe):
    a = load_recipe(recipe(GOOD))
    b = load_recipe(recipe(GOOD), ["steps=2", "parts=[plain]", "part.inside.gamma=3"])
    assert differences(a, a) == []
    assert set(differences(a, b)) == {
        ("part.inside.gamma", 2.0, 3.0),
        ("parts.1.name", "plain", MISSING),
        ("parts.1.gamma", 1.0, MISSING),
        ("steps", 1, 2),
    }


def test_a_class_from_outside_is_named_by_its_path(recipe):
    name = f"{__name__}:Inner"
    loaded = load_recipe(recipe(GOOD + f"maybe: {{name: '{name}', n: 5}}\n"))
    assert loaded.maybe.n == 5 and encode(loaded)["maybe"]["name"] == name


def test_the_registry_lists_without_importing_and_suggests():
    assert PARTS.names() == ["nest", "plain"]
    with pytest.raises(UnknownName, match="unknown part 'plane'. Did you mean 'plain'"):
        PARTS.get("plane")


def test_every_verb_has_a_schema_that_refuses_unknown_fields():
    for name, schema in schemas.VERBS.items():
        assert get_type_hints(schema)["verb"] == Literal[name]
        strict(schema)
        assert schema.__pydantic_config__ == {"extra": "forbid"}


def test_decode_takes_a_document(recipe):
    assert decode(read(recipe(GOOD))).out == "x"
