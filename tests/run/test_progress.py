import pytest

from jmpq.run.progress import bar, log_lines


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(seconds, total, note=""):
    """Lines of a work of `total` parts that take so many seconds each."""
    clock, lines = Clock(), []
    with log_lines("Solving", "solutions", write=lines.append, clock=clock) as move:
        move(0, total)
        for done in range(1, total + 1):
            clock.now += seconds
            move(done, total, note)
    return lines


def test_long_work_has_a_line_every_ten_seconds():
    lines = lines_of(2.0, 1000)
    assert len(lines) == 200
    assert lines[0] == "Solving: 5/1000 solutions, 0:00:10 passed, 0:33:10 left"
    assert lines[-1] == "Solving: 1000/1000 solutions, 0:33:20 passed, 0:00:00 left"


@pytest.mark.parametrize(("seconds", "count"), [(2.0, 6), (0.001, 0), (0.9, 0), (30.0, 10)])
def test_short_work_has_a_line_a_tenth_and_quick_work_none(seconds, count):
    lines = lines_of(seconds, 10)
    assert len(lines) == count
    assert not lines or "10/10" in lines[-1]


def test_a_resumed_run_takes_the_time_of_its_own_work():
    clock, lines = Clock(), []
    with log_lines("Measuring", write=lines.append, clock=clock) as move:
        move(80, 100)
        clock.now = 20.0
        move(90, 100)
    assert lines == ["Measuring: 90/100, 0:00:20 passed, 0:00:20 left"]


def test_logs_have_no_control_characters(capfd):
    (line,) = lines_of(30.0, 1, "\x1b[31mred\r\n")
    assert line.isprintable()
    assert line.startswith("Solving: 1/1 solutions")
    with bar("Solving \x1b[1m", "solutions") as move:
        move(0, 2)
        move(2, 2)
    assert capfd.readouterr().err == ""  # quick work leaves no line in a log
