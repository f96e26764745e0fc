"""The short form of `scripts/stress_resume.py`: real processes, killed."""

import pytest
import stress_resume

from tests.dist.stress import stressed


@pytest.mark.slow
def test_killed_runs_end_like_the_one_that_nobody_killed(capsys):
    code = stressed(stress_resume, "--times", "1")
    said = capsys.readouterr().out
    assert code == 0, said
    assert "3 of 3 runs equal" in said
