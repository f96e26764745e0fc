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
