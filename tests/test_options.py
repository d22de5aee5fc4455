"""How the commands of `bench` tell their progress."""

from benchmarks import options


class Clock:
    """Stands in for the module time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_progress_is_told_after_two_seconds_with_the_time_left(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(options, "time", clock)
    clock.now = 100.0
    tell = options.progress("pictures")
    for second, done in ((1, 5), (3, 15), (4, 20), (14, 70), (20, 100)):
        clock.now = 100.0 + second
        tell(done, 100)
    # 5 pictures a second: 85 left take 17 s, 30 take 6. Not told: the first second, one second after, the end.
    assert capsys.readouterr().err == "15 of 100 pictures, 0:17 left\n70 of 100 pictures, 0:06 left\n"


def test_progress_on_a_terminal_stays_in_one_line_and_goes(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(options, "time", clock)
    monkeypatch.setattr(options.sys.stderr, "isatty", lambda: True)
    clock.now = 100.0
    tell = options.progress("runs")
    for second, done in ((3, 15), (4, 20), (20, 100)):
        clock.now = 100.0 + second
        tell(done, 100)
    shown = capsys.readouterr().err
    assert shown == "\r\033[K15 of 100 runs, 0:17 left\r\033[K20 of 100 runs, 0:16 left\r\033[K"
