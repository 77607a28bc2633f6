"""The benchmark runs, and says what misses its goal."""

import bench
import pytest


def test_the_benchmark_prints_its_tables(capsys):
    bench.missed.clear()
    bench.main("--rounds", "2", "--only", "fixed,loss,hidden")
    printed = capsys.readouterr().out
    for row in ("before_batch", "all events of a batch", "(64, 1000)", "(64, 64, 28, 28)"):
        assert f"\n| {row} | " in printed
    told = printed.split("Goals missed:")[1].count("\n- ") if "Every goal is reached." not in printed else 0
    assert told == len(bench.missed)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the contenders move, so that the machine's load does not count."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def contender():
            now[0] += seconds

        return contender

    return takes


def test_missed_goals_are_told_and_what_fails_has_no_number(capsys, clock):
    bench.missed.clear()

    def fails():
        raise ValueError("no")

    contenders = {"limit": clock(5e-3), "slow": clock(25e-3), "fast": clock(1e-4), "fails": fails}
    goals = [
        ("slow", "limit", 2),
        ("slow", "limit", 90),
        ("fast", "limit", 1),
        ("fails", "limit", 1),
        ("fast", "fails", 1),
    ]
    assert bench.row("title", contenders, goals, rounds=3) == ["title", "5000 µs", "5.00 (5.00) !", "0.02 (0.02)", "-"]
    assert bench.missed == ["title: slow is 5.00 × limit, goal 2.00"]
    assert "fails" in capsys.readouterr().err
