"""A log that is cut back and gone on with."""

import pytest

from vlalign.evals.report.log import read_lines
from vlalign.train.log import LogFile
from vlalign.types import UserError


def test_a_new_log_is_fresh_and_a_resumed_one_is_not(tmp_path):
    path = tmp_path / "log.jsonl"
    log = LogFile(path)
    assert log.fresh
    log.write({"header": {"rows": 3}})
    log.write({"step": 1, "loss": 0.1 + 0.2})
    log.sync()
    log.close()
    assert read_lines(path) == [{"header": {"rows": 3}}, {"step": 1, "loss": 0.30000000000000004}]
    assert not LogFile(path, step=1).fresh


def test_lines_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = ['{"header": {}}', *(f'{{"step": {step}}}' for step in (1, 2, 3, 4)), '{"step": 5, "lo']
    path.write_text("\n".join(lines), encoding="utf-8")
    log = LogFile(path, step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert read_lines(path) == [{"header": {}}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_beginning_again_drops_everything(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"header": {}}\n{"step": 1}\n', encoding="utf-8")
    assert LogFile(path, step=0).fresh and read_lines(path) == []


@pytest.mark.parametrize("line", ["{", "3", "\x00"])
def test_a_damaged_line_is_told_by_its_number(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"header": {{}}}}\n{line}\n{{"step": 1}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"log.jsonl: line 2 is damaged"):
        LogFile(path, step=1)


def test_a_folder_in_its_place_is_told(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match=r"^out: .*log.jsonl cannot be written: Is a directory"):
        LogFile(tmp_path / "log.jsonl")


def test_a_full_disk_is_told_at_each_line_and_once_more_at_the_end(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = LogFile.__new__(LogFile)
    log.out, log.file = tmp_path, (tmp_path / "log.jsonl").open("a", encoding="utf-8")
    for act in (lambda: log.write({"step": 1}), log.close):
        with pytest.raises(UserError, match="No space left on device; the last whole checkpoint is none"):
            act()
