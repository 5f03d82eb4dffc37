"""Progress of long work, as lines in a log."""

from __future__ import annotations

import time

import pytest

from vmreid.progress import Reporter


@pytest.mark.parametrize(("seconds_each", "left"), [(6, "0m54s"), (13.3, "2m00s"), (59.9, "8m59s"), (600, "90m00s")])
def test_the_time_left_is_that_of_the_units_to_come(monkeypatch, capsys, seconds_each, left):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Reporter("step", 10) as reporter:
        clock[0] += seconds_each
        reporter.advance("loss 3")
        clock[0] += 9 * seconds_each
        for _ in range(9):
            reporter.advance()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == f"step 1/10  loss 3  {left} left"
    assert last == "step 10/10"
