"""python -m tests.benchmarks.summarize_400: how long `records summarize` takes for 400 logs, in 40 entries.

Each log has a flattened script at its head and 3275 steps with a line each, as the longest published ones.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for log_text and made_logs, as pytest does

from log_text import log_text, step_line  # noqa: E402
from made_logs import RECIPE, ROOT, losses, script  # noqa: E402

from records.run.recipe import toml_lines  # noqa: E402
from records.run.track import shipped_tracks  # noqa: E402

STEPS, ENTRIES, RUNS = 3275, 40, 10


def main() -> None:
    head = script("\n".join(toml_lines(RECIPE)), "--seeds", "0")
    curve = losses(STEPS, track=shipped_tracks()["fineweb"])
    with tempfile.TemporaryDirectory() as name:
        for entry in range(ENTRIES):
            for seed in range(RUNS):
                lines = [f"seed: {seed}"]
                for step in range(STEPS + 1):
                    lines.append(f"step:{step}/{STEPS} train_time:{step * 0.15:.3f}s step_avg:150.00ms")
                    if step in curve:
                        lines.append(
                            step_line(step, STEPS, curve[step] + 1e-4 * seed + 1e-5 * entry * (step > 0))
                        )
                path = Path(name) / f"entry{entry}" / f"{seed}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(log_text("\n".join(lines), script=head))
        size = sum(path.stat().st_size for path in Path(name).rglob("*.txt"))
        folders = sorted(str(path) for path in Path(name).iterdir())
        command = [sys.executable, "-m", "records", "summarize", *folders]
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            print(f"{ENTRIES * RUNS} logs, {size / 1e6:.0f} MB: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
