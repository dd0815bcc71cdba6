"""The log as it is written, and the progress shown."""

import pytest

from records.run import run_log
from records.run.run_log import Clock, LogError, Progress, RunLog, verdict


def started(path, resume=False):
    log = RunLog(path, resume=resume, writes=True)
    if not resume:
        log.head("script", "versions", {"id": "a"}, 'track = "nano"')
    return log


def test_a_log_is_never_overwritten(tmp_path):
    started(tmp_path / "a.txt").line("precious")
    with pytest.raises(LogError, match="cannot write the log .*a.txt"):
        started(tmp_path / "a.txt")
    assert "precious" in (tmp_path / "a.txt").read_text()


def test_a_resumed_log_goes_on_behind_its_last_whole_line(tmp_path):
    log = started(tmp_path / "a.txt")
    log.line("seed: 0", (0, -1))
    log.line("step:0/9 val_loss:5.0", (0, 0))
    log.line("step:3/9 val_loss:4.0", (0, 3))
    whole = (tmp_path / "a.txt").read_text()
    with open(tmp_path / "a.txt", "a") as file:
        file.write("step:6/9 val_lo")  # killed in the middle of a line
    log = started(tmp_path / "a.txt", resume=True)
    log.line("seed: 0", (0, -1))
    log.line("step:3/9 val_loss:4.0", (0, 3))
    log.line("step:6/9 val_loss:3.0", (0, 6))
    log.line("seed: 1", (1, -1))
    log.line("step:0/9 val_loss:5.0", (1, 0))
    assert (
        tmp_path / "a.txt"
    ).read_text() == whole + "step:6/9 val_loss:3.0\nseed: 1\nstep:0/9 val_loss:5.0\n"


def test_half_a_checkpoint_of_a_killed_process_is_removed_when_the_run_goes_on(tmp_path):
    started(tmp_path / "a.txt")
    (tmp_path / "a.checkpoints").mkdir()
    for name in ("run000_step000002.pt", "run000_step000004.tmp"):
        (tmp_path / "a.checkpoints" / name).write_bytes(b"")
    started(tmp_path / "a.txt", resume=True)
    assert [path.name for path in tmp_path.glob("a.checkpoints/*")] == ["run000_step000002.pt"]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    log = RunLog(tmp_path / "a.txt", resume=False, writes=False)
    log.line("text")
    log.record(step=1)
    assert not list(tmp_path.iterdir())


def test_verdict_interpolates_the_crossing():
    assert "reached at step 20 with 2.50000, interpolated 15.0; best 2.00000 at step 30" in verdict(
        [(0, 5.0), (10, 3.5), (20, 2.5), (30, 2.0)], 3.0
    )
    assert verdict([(0, 5.0), (10, 3.5)], 3.0) == "target 3.0 not reached; best 3.50000 at step 10"
    assert "reached at step 0" in verdict([(0, 1.0)], 3.0)


def test_verdict_draws_no_line_from_the_first_validation():
    told = verdict([(0, 5.0), (400, 2.5)], 3.0)
    assert told == "target 3.0 reached at step 400 with 2.50000; best 2.50000 at step 400"


def test_plain_lines_where_there_is_no_terminal(capsys):
    progress = Progress(10, 0, 1024, peak_share=0.0, shown=True, writer=None)
    progress.say("step:0/10 val_loss:5.00000")
    progress.validated(0, 5.0)
    assert progress.stepped(0, 5.0, {"lr.matrix": 0.1}) > 0
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == "step:0/10 val_loss:5.00000\n" and captured.err == ""


def test_scalars_go_to_the_writer():
    class Writer(list):
        def add_scalar(self, name, value, step):
            self.append((name, step))

        def close(self):
            self.append("closed")

    writer = Writer()
    progress = Progress(10, 0, 1024, peak_share=0.0, shown=True, writer=writer)
    progress.validated(0, 5.0)
    progress.stepped(0, 5.0, {"lr.matrix": 0.1})
    progress.close()
    assert writer == [("val_loss", 0), ("loss", 0), ("tokens_per_s", 0), ("lr.matrix", 0), "closed"]


def test_the_clock_stands_still_between_stop_and_start(monkeypatch):
    now, waits = [100.0], []
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now[0])
    clock = Clock(lambda: waits.append(now[0]), seconds=5.0)
    clock.start()
    now[0] = 103.0
    clock.stop()
    now[0] = 250.0  # validation
    clock.start()
    now[0] = 251.0
    clock.stop()
    assert clock.seconds == 9.0 and len(waits) == 4


def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk is full in the middle of a line."""
    log = started(tmp_path / "a.txt")
    log.line("precious")
    whole = (tmp_path / "a.txt").read_bytes()

    class Full(type(log.files[0])):
        def write(self, data):
            if len(data) < 5:
                raise OSError(28, "No space left on device")
            return super().write(data[:5])

    log.files[0] = Full(tmp_path / "a.txt", "r+")
    log.files[0].seek(0, 2)
    log.line("step:1/9 val_loss:5.0", (0, 1))
    log.line("more", (0, 2))
    assert (tmp_path / "a.txt").read_bytes() == whole
    assert "No space left on device" in str(log.error)


def test_only_a_start_that_fails_removes_its_log(tmp_path):
    for name, position in (("failed", (0, -1)), ("trained", (0, 0))):
        with pytest.raises(ZeroDivisionError), RunLog(tmp_path / f"{name}.txt", False, True) as log:
            log.line("text", position)
            log.line(f"{1 / 0}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trained.jsonl", "trained.txt"]
