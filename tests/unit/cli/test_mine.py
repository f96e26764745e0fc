import json

from tests.unit.cli.test_main import run
from tests.unit.data.json_lines import lines


def test_mining_is_a_command_that_says_what_it_wrote(tmp_path, capsys):
    rows = [
        {"query": f"{at} cars", "candidates": [{"id": at, "text": f"{at}", "label": 1}]} for at in range(3)
    ]
    path = lines(tmp_path / "rows.jsonl", *rows)
    words = ["recipes/mine/mine.yaml", f"out={tmp_path / 'out'}", "model=recipes/tiny/open_clip"]
    words += [f"data.path={path}", "corpus=null"]
    assert f"rows: {tmp_path / 'out' / 'candidates.jsonl'}" in run("mine", *words, capsys=capsys)
    assert json.loads((tmp_path / "out" / "mined.json").read_text())["queries"] == 3
    assert "k: must be from 1 to the 91 ranks of window, got 0" in run(
        "mine", *words, "k=0", code=2, capsys=capsys
    )
    assert "not for 'vlalign rerank'" in run("rerank", *words, code=2, capsys=capsys)
