import json
import re
from html.parser import HTMLParser

import pytest

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.evals.evaluators.zero_shot import ZeroShot
from vlalign.evals.report.figures import curve
from vlalign.evals.report.page import gather, write
from vlalign.evals.report.verdict import verdict
from vlalign.evals.report.versions import versions
from vlalign.evals.rows import write_rows
from vlalign.specs import EvalRow
from vlalign.types import Limits, UserError

HOSTILE = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Which elements a page has, and its text; complains about what does not close."""

    VOID = {"meta", "link", "img", "br", "wbr"}

    def __init__(self, path):
        super().__init__()
        self.elements, self.stack, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def measured():
    """Rows of three evaluators over data with two colours mixed up."""
    rows = [
        {"image": COLOURS["red"], "captions": ("a blue thing",), "label": "blue"},
        {"image": COLOURS["blue"], "captions": ("a red thing",), "label": "red"},
        {"image": COLOURS["green"], "captions": (f"a green thing {HOSTILE}",), "label": f"green {HOSTILE}"},
        {"image": None, "captions": ("lost",), "label": "red"},
    ]
    data = Spec(Rows(rows))
    evaluators = (
        Retrieval(data=data, dataset="fake/unseen_things"),
        ZeroShot(data=data, dataset="fake/labels"),
        EmbeddingHealth(data=data, dataset="fake/unseen_things"),
    )
    return [row for evaluator in evaluators for row in evaluator(ColourModel(), Limits())]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sample"
    write_rows(out, measured())
    header = {
        "versions": {"torch": "2.99"},
        "licences": [{"name": "w", "licence": "MIT", "source": "javascript:x"}],
    }
    lines = [{"header": header}]
    lines += [
        {
            "step": step,
            "loss": 6 / step,
            "lr": 0.1,
            "scale": 14.3,
            "norm": 1.0,
            "time": {"samples_per_second": 900.0},
        }
        for step in (1, 2, 3)
    ]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "log.jsonl").write_text(whole + '{"step": 4, "lo', encoding="utf-8")
    (out / "rows.json").write_text(
        json.dumps({"used": 1430, "skipped": {"too_many_pixels": 7}, "converted": {}})
    )
    (out / "recipe.yaml").write_text(f"verb: train\nout: runs/sample # {HOSTILE}\n")
    assert write(out) == out / "report.html"
    assert sorted(path.name for path in out.glob("*.html")) == ["report.html"]
    return Page(out / "report.html")


def test_everything_of_the_run_is_on_the_page(page):
    for told in (
        "sample",
        "too_many_pixels: 7",
        "truncated: 1",
        "1,430",
        "verb: train",
        "2.99",
        "CC0",
        "MIT",
    ):
        assert told in page.text, told
    assert (
        "finds the right picture among its first ten for 100.0\N{NO-BREAK SPACE}% of unseen things"
        in page.text
    )
    labels = [attrs["aria-label"] for attrs in page.all("svg")]
    assert "loss over 3 logged steps: 6 at step 1, 2 at step 3." in labels and len(labels) == 5
    assert "absent" not in {attrs.get("class") for attrs in page.all("p")}


def test_the_gallery_marks_right_and_wrong(page):
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert "right: a blue thing" in alts and "wrong: a red thing" in alts
    assert all(attrs["src"].startswith("data:image/webp;base64,") for attrs in page.all("img"))
    assert {"right", "wrong"} <= {attrs.get("class") for attrs in page.all("li")}


def test_nothing_is_asked_of_the_network_and_nothing_runs(page):
    assert not page.all("script") and HOSTILE in page.text
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:", "https:")), value  # https only as links of sources
    assert not [attrs for attrs in page.all("link") if attrs["href"] != "data:,"]
    assert "javascript:x" in page.text  # told as text, not as a link


def test_an_empty_folder_says_what_is_absent(tmp_path):
    page = Page(write(tmp_path))
    for told in (
        "not evaluated",
        "did not train",
        "no recipe.yaml",
        "No rows were counted",
        "told no licences",
    ):
        assert told in page.text, told
    assert "Nothing was measured" in page.text


def test_figures_share_no_ids_and_take_the_pages_colours():
    one, two = curve("loss", [1, 2], [3.0, 1.0]), curve("lr", [1, 2], [0.1, 0.2])
    ids = [set(re.findall(r' id="([^"]+)"', figure)) for figure in (one, two)]
    assert not ids[0] & ids[1]
    assert "var(--accent)" in one and "#0" not in one and "font-family" not in one and "xmlns" not in one
    assert one == curve("loss", [1, 2], [3.0, 1.0])


def told(value, chance, captions=400):
    metrics, levels = {"text_to_image_R@10": value}, {"text_to_image_R@10": chance}
    exhibits = {"rows": {"captions": captions}}
    return EvalRow(
        dataset="a/b_c", task="zeroshot_retrieval", metrics=metrics, chance=levels, exhibits=exhibits
    )


def test_the_verdict_does_not_oversell():
    space = "\N{NO-BREAK SPACE}"
    assert verdict([told(0.46, 0.027)]).endswith(f"for 46.0{space}% of b c (chance 2.7{space}%).")
    assert "hardly told from chance" in verdict([told(0.03, 0.027)])
    assert "no better than chance" in verdict([told(0.027, 0.027)])
    assert verdict([told(0.4, 0.1), told(0.3, 0.1), told(0.2, 0.1)]).count(" and ") == 1
    assert verdict([]) == ""


def test_versions_are_the_runs_own_or_those_of_now(tmp_path, page):
    assert [name for name, _ in versions().items()][:2] == ["python", "vlalign"]
    assert gather(tmp_path)["versions"] == versions()
    (tmp_path / "log.jsonl").write_text('{"header": {"versions": {"torch": "0.1"}}}\n', encoding="utf-8")
    assert gather(tmp_path)["versions"] == {"torch": "0.1"}


def test_a_page_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    (tmp_path / "log.jsonl").write_text("no json\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is damaged"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
