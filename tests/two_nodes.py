"""Two nodes on one machine: two network namespaces joined by a cable, a process in each, gloo between them.

    python -m tests.two_nodes FOLDER      as root; leaves the logs in FOLDER and says what was seen

24 steps of nano with Muon: on one node with two processes; on two nodes, with the same losses; on two nodes,
one of which is killed; and that run resumed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
NODES = ("speedrun0", "speedrun1")  # namespaces; the ends of the cable have the same names
FIRST = "10.77.0.1"


def why_not() -> str:
    """What keeps this machine from having namespaces; empty where it can."""
    try:
        made = subprocess.run(["ip", "netns", "add", "speedrun_try"], capture_output=True, text=True)
        subprocess.run(["ip", "netns", "delete", "speedrun_try"], capture_output=True)
    except OSError as error:
        return f"ip netns: {error.strerror}"
    return "" if made.returncode == 0 else f"ip netns: {made.stderr.strip() or 'refused'}"


@contextmanager
def cable() -> Iterator[None]:
    """The namespaces while it lasts."""
    remove_nodes()
    try:
        for node in NODES:
            ip(f"netns add {node}")
        ip(f"link add {NODES[0]} netns {NODES[0]} type veth peer name {NODES[1]} netns {NODES[1]}")
        for number, node in enumerate(NODES, 1):
            ip(f"-n {node} address add 10.77.0.{number}/24 dev {node}")
            ip(f"-n {node} link set {node} up")
            ip(f"-n {node} link set lo up")
        yield
    finally:
        remove_nodes()


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def remove_nodes() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "delete", node], capture_output=True)


def start(out: Path, nproc: int, node: int | None, *options: str) -> subprocess.Popen[str]:
    """./run.sh, on a node or (None) on this machine."""
    asked = ["--track", "nano", "--recipe", "muon", "--steps", str(STEPS), "--validate-ends", *options]
    command = [str(ROOT / "run.sh"), "--nproc", str(nproc), *asked, "--out", str(out)]
    own = {"VENV": "none", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if node is not None:
        command = ["ip", "netns", "exec", NODES[node], *command]
        own |= {"NNODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": FIRST, "MASTER_PORT": "29500"}
        own |= {"GLOO_SOCKET_IFNAME": NODES[node]}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env={**os.environ, **own}, **pipes)


def start_both(folder: Path, *options: str) -> list[subprocess.Popen[str]]:
    """One process on each node; only the first writes."""
    return [start(folder / f"node{node}", 1, node, *options) for node in (0, 1)]


def losses(folder: Path) -> dict[int, float]:
    """The training loss of each step, of the only log in the folder."""
    (log,) = folder.glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def kill_node(node: int) -> None:
    """Every process of a node, as when its power fails."""
    inside = subprocess.run(["ip", "netns", "pids", NODES[node]], capture_output=True, text=True, check=True)
    for process in inside.stdout.split():
        os.kill(int(process), signal.SIGKILL)


def wait_for(pattern: str, folder: Path, runs: list[subprocess.Popen[str]], seconds: float = 240) -> None:
    """Until a file is there. Raises RuntimeError where a run ends before."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        if time.monotonic() > deadline or any(run.poll() is not None for run in runs):
            raise RuntimeError("\n".join(run.communicate()[0] for run in runs if run.poll() is not None))
        time.sleep(0.02)


def try_all(folder: Path) -> dict[str, object]:
    """What was seen: losses of each training, seconds and last words after a node was killed."""
    alone = start(folder / "alone", 2, None)
    told = alone.communicate(timeout=600)[0]
    seen: dict[str, object] = {"alone": losses(folder / "alone") if alone.returncode == 0 else told}
    with cable():
        runs = start_both(folder / "joined")
        said = [run.communicate(timeout=600)[0] for run in runs]
        ended = all(run.returncode == 0 for run in runs)
        seen["joined"] = losses(folder / "joined/node0") if ended else said
        runs = start_both(folder / "killed", "--checkpoint-every", "1")
        wait_for("node0/*.checkpoints/*.pt", folder / "killed", runs)
        kill_node(1)
        began, said = time.monotonic(), [run.communicate(timeout=600)[0] for run in runs]
        seen["seconds"] = time.monotonic() - began
        seen["codes"], seen["last_words"] = [run.returncode for run in runs], said[0].strip().splitlines()[-1]
        seen["before"] = losses(folder / "killed/node0")
        runs = start_both(folder / "killed", "--checkpoint-every", "1", "--resume")
        said = [run.communicate(timeout=600)[0] for run in runs]
        ended = all(run.returncode == 0 for run in runs)
        seen["resumed"] = losses(folder / "killed/node0") if ended else said
    return seen


if __name__ == "__main__":
    print(why_not() or json.dumps(try_all(Path(sys.argv[1])), indent=1))
