"""Trackers never fail a run."""

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from vlalign.train.trackers import Trackers


def test_one_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("vlalign.train.trackers.find_spec", lambda name: None)
    told = []
    Trackers(["wandb"], tmp_path, told.append).log(1, {"loss": 1.0})
    assert len(told) == 1 and "wandb is not installed" in told[0]


def test_one_that_breaks_is_told_once_and_left_out(tmp_path, monkeypatch):
    class Broken:
        requires_logging_directory = False

        def __init__(self, name):
            pass

        def start(self):
            pass

        def log(self, values, step):
            raise ConnectionError("no network")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Broken)
    told = []
    trackers = Trackers(["tensorboard"], tmp_path, told.append)
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    trackers.close()
    assert len(told) == 1 and "no network" in told[0]


def test_tensorboard_writes_events(tmp_path):
    PartialState()
    told = []
    trackers = Trackers(["tensorboard"], tmp_path, told.append)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert told == [] and list((tmp_path / "tensorboard").glob("events.*"))


def test_steps_that_are_logged_again_after_a_resume_count_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState()
    for done, value in ((0, 1.0), (3, 2.0)):
        trackers = Trackers(["tensorboard"], tmp_path, print, done)
        for step in range(done + 1, 6):
            trackers.log(step, {"loss": value})
        trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
