"""The benchmark runs, and says what misses its goal."""

import time

import bench


def test_the_benchmark_prints_its_tables(capsys):
    bench.missed.clear()
    bench.main("--rounds", "2", "--only", "fixed,loss,hidden")
    printed = capsys.readouterr().out
    for row in ("before_batch", "all events of a batch", "(64, 1000)", "(64, 64, 28, 28)"):
        assert f"\n| {row} | " in printed
    told = printed.split("Goals missed:")[1].count("\n- ") if "Every goal is reached." not in printed else 0
    assert told == len(bench.missed)


def test_what_is_slower_than_its_goal_is_told_and_what_fails_has_no_number(capsys):
    bench.missed.clear()

    def fails():
        raise ValueError("no")

    contenders = {
        "limit": lambda: time.sleep(5e-3),
        "slow": lambda: time.sleep(25e-3),
        "fast": lambda: None,
        "fails": fails,
    }
    goals = [
        ("slow", "limit", 2),
        ("slow", "limit", 90),
        ("fast", "limit", 1),
        ("fails", "limit", 1),
        ("fast", "fails", 1),
    ]
    title, limit, slow, fast, failed = bench.row("title", contenders, goals, rounds=3)
    assert title == "title"
    assert float(limit.removesuffix(" µs")) >= 5000
    assert slow.endswith(" !")
    assert 2 < float(slow.split()[0]) <= 5.1
    assert float(fast.split()[0]) < 0.1
    assert failed == "-"
    assert len(bench.missed) == 1
    assert bench.missed[0].startswith("title: slow is ")
    assert "fails" in capsys.readouterr().err
