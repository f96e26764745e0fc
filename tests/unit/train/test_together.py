"""One failure ends all processes, and is told by the main one."""

from dataclasses import dataclass, field

import pytest

from vlalign.train import together as module
from vlalign.train.together import together
from vlalign.types import DataError, UserError


@dataclass
class Second:
    """A process of two, of which the other had `others` for an outcome; `met`: what it waited for."""

    others: UserError | None
    main: bool
    met: list[str] = field(default_factory=list)

    def barrier(self):
        self.met.append("meet")

    def total(self, count):
        self.met.append("total")
        return count + (self.others is not None)

    def gather(self, value):
        return [value, self.others] if self.main else [self.others, value]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(module, "LINGER", 0.0)


def test_all_go_on_when_none_failed():
    for soon in (False, True):
        process = Second(None, main=True)
        with together(process, soon=soon):
            process.met.append("work")
        assert process.met == ["work"] + ["meet"] * (not soon) + ["total"]


def test_the_main_process_tells_what_another_met():
    with pytest.raises(DataError, match="theirs"), together(Second(DataError("theirs"), main=True)):
        pass
    with pytest.raises(DataError, match="ours"), together(Second(UserError("theirs"), main=True)):
        raise DataError("ours")


def test_the_others_leave_without_a_word():
    for own in (None, UserError("ours")):
        with pytest.raises(SystemExit) as left, together(Second(UserError("theirs"), main=False)):
            if own:
                raise own
        assert left.value.code == 2


def test_what_no_user_can_put_right_passes_at_once():
    process = Second(None, main=True)
    with pytest.raises(KeyError), together(process):
        raise KeyError
    assert process.met == []
