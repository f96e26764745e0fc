import pytest

from vlalign.recipe.read import read
from vlalign.types import RecipeError


@pytest.fixture
def recipes(tmp_path):
    def put(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put


def test_a_child_merges_maps_replaces_lists_and_drops_the_knobs_of_a_renamed_component(recipes):
    recipes(
        "parent.yaml",
        "a: {x: 1, y: 2}\nlist: [1, 2]\noptim: {name: adamw, lr: 1e-4}\nkeep: {name: k, z: 1}\n",
    )
    child = recipes(
        "sub/child.yaml",
        "extends: ../parent.yaml\na: {y: 3}\nlist: [9]\noptim: {name: lion}\nkeep: {name: k, w: 2}\n",
    )
    document = read(child)
    assert document.value == {
        "a": {"x": 1, "y": 3},
        "list": [9],
        "optim": {"name": "lion"},
        "keep": {"name": "k", "z": 1, "w": 2},
    }
    assert document.mark(("a", "x")).endswith("parent.yaml:1")
    assert document.mark(("a", "y")).endswith("child.yaml:2")
    assert document.mark(("optim", "lr")).endswith(
        "child.yaml:4"
    )  # no longer there: the nearest part that is


def test_the_short_form_of_a_component(recipes):
    recipes("parent.yaml", "targets: {name: identity, same: row}\nselector: identity\n")
    child = recipes("child.yaml", "extends: parent.yaml\ntargets: identity\nselector: other\n")
    assert read(child).value == {"targets": {"name": "identity", "same": "row"}, "selector": "other"}
    assert read(child, ["selector.margin=0.5"]).value["selector"] == {"name": "other", "margin": 0.5}


def test_numbers_are_those_of_yaml_1_2(recipes):
    value = read(recipes("r.yaml", "a: 1e-4\nb: on\nc: 012\nd: true\ne: null\nf: '10'\n")).value
    assert value == {"a": 1e-4, "b": "on", "c": 12, "d": True, "e": None, "f": "10"}
    assert type(value["a"]) is float and type(value["f"]) is str


def test_overrides_reach_maps_and_lists_and_blame_the_command_line(recipes):
    path = recipes("r.yaml", "task:\n  terms:\n    - {objective: dcl, scale: 1.0}\nsteps: 3\n")
    document = read(path, ["task.terms.0.scale=0.5", "steps=7", "task.new=[a, {b: c}]", "text="])
    assert document.value["task"] == {"terms": [{"objective": "dcl", "scale": 0.5}], "new": ["a", {"b": "c"}]}
    assert (document.value["steps"], document.value["text"]) == (7, "")
    assert document.mark(("task", "terms", 0, "scale")) == "command line"
    assert document.mark(("task", "new", 1, "b")) == "command line"
    assert document.mark(("task", "terms", 0, "objective")).endswith("r.yaml:3")


def test_an_override_erases_the_marks_of_what_it_replaces(recipes):
    path = recipes("r.yaml", "data:\n  train: {name: emoji, style: google}\n")
    document = read(path, ["data.train={name: jsonl, path: x}"])
    assert document.value["data"]["train"] == {"name": "jsonl", "path": "x"}
    assert document.mark(("data", "train", "style")) == "command line"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["steps"], "'steps' is no override"),
        (["=3"], "'=3' is no override"),
        (["terms.5.scale=1"], "there is no '5' here, it is a list of 1"),
        (["steps.x=1"], "there is no 'x' here, it is 3, which has no parts"),
        (["steps=[1"], "'[1' is not YAML"),
        (["terms.name=1"], "there is no 'name' here, it is a list of 1"),
    ],
)
def test_a_wrong_override_is_told(recipes, overrides, told):
    path = recipes("r.yaml", "steps: 3\nterms: [{scale: 1}]\n")
    (mistake,) = read(path, overrides).mistakes
    assert told in mistake and mistake.startswith("command line")


def test_all_wrong_overrides_are_told_at_once(recipes):
    assert len(read(recipes("r.yaml", "steps: 3\n"), ["a", "steps.x=1"]).mistakes) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b\n", "expected a map of fields, got a list"),
        ("", "expected a map of fields, got nothing"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2: this is not YAML"),
        ("a: 1\na: 2\n", "this is not YAML: found duplicate key"),
        ("extends: [1]\n", "r.yaml:1: extends: expected a path, got [1]"),
        ("extends: nowhere.yaml\n", "r.yaml:1: extends: there is no"),
        ("extends: r.yaml\n", "extends itself"),
    ],
)
def test_a_file_that_is_no_recipe_is_told(recipes, text, told):
    with pytest.raises(RecipeError) as error:
        read(recipes("r.yaml", text))
    assert told in str(error.value)


def test_a_missing_and_an_undecodable_file_are_told(tmp_path):
    with pytest.raises(RecipeError, match="there is no such recipe"):
        read(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path / "bytes.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['exit 3']", "!!python/name:os.system ''", "!x {a: 1}"]
)
def test_tags_are_refused(recipes, value):
    with pytest.raises(RecipeError, match="the tag .* is not allowed"):
        read(recipes("r.yaml", f"a: {value}\n"))


def test_anchors_and_merge_keys(recipes):
    assert read(recipes("r.yaml", "a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x\n")).value == {
        "a": {"b": 1},
        "c": {"b": 1, "d": 2},
        "e": {"b": 1},
    }


def test_letters_that_json_writes_as_two_are_one(recipes):
    path = recipes("emoji.yaml", '{"verb": "train", "out": "\\ud83d\\ude00 é"}')
    assert read(path).value["out"] == "\U0001f600 é"
    assert read(path, ['out="\\ud83d\\ude00"']).value["out"] == "\U0001f600"
