#!/usr/bin/env bash
# Set up, fetch what is missing, train. ./run.sh --help says more.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

help() {
    cat <<'TEXT'
./run.sh [options]                train and leave a record log in logs/
./run.sh test                     set up and run the tests
./run.sh records COMMAND ...      summarize, compare, check, submit, leaderboard, report, extract
./run.sh tune RECIPE --trials N   search learning rate and weight decay
./run.sh doctor [--nproc N]       is this machine ready, and how fast will it be? No data; minutes

With an NVIDIA GPU: GPT-124M on FineWeb (track fineweb), one process a GPU. Without: a small model on an
embedded corpus (track nano), about a minute on one core. Missing packages and data are fetched first.

  --track NAME|FILE         the track: fineweb, nano, or a TOML file like records/nano/track.toml
  --recipe NAME|FILE        the optimizer and its settings (--recipes lists them)
  --explain                 print the stages of the recipe, with every value, default and range
  --set matrix.lr=0.03      change the recipe; may be repeated
  --steps N                 train N steps; the schedule follows
  --seeds 0-4 | 0,3         one run a seed, all in one log (0)
  --nproc N                 processes: 1, 2, 4 or 8 (all GPUs; 1 on a CPU)
  --micro-batch ROWS        rows of a forward pass (what the memory holds)
  --compile                 on a CPU too (on a GPU always): about 1.4 times as fast after half a minute of
                            compiling, kept for later runs; needs a C++ compiler
  --validate-ends           validate at the first and the last step only: for searches
  --checkpoint-every N      a checkpoint every N steps, the last two kept; Ctrl-C writes one too
  --resume [RUN]            go on from the newest checkpoint in the log folder, or of the log RUN
  --data DIR  --out DIR     folders of the data (data/) and of the logs (logs/)
  --profile                 trace ten steps, beside the log, and say where their time went
  --instruments [EVERY]     measure what updates do to every matrix, beside the log (every 25 steps)
  --readouts                validate through each readout of the recipe alone too
  --tensorboard DIR         write scalars there too

Environment: VENV=DIR (default .venv) or VENV=none for the Python that is there; PYTHON (default python3) makes
the environment. Several nodes: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, or SLURM's own (one task a node).
Exit code: 0 done; 2 refused, nothing was done; 1 begun, and ended early; 128 + N ended by signal N.
TEXT
}

fail() { echo "error: $*" >&2; exit 2; }

# Make the environment and install requirements.txt, unless both are done already.
set_up() {
    if [ "${VENV:-}" = none ]; then
        PY="$(command -v "${PYTHON:-python3}")" || fail "VENV=none, but there is no ${PYTHON:-python3}"
        return
    fi
    local venv="${VENV:-$ROOT/.venv}"
    PY="$venv/bin/python"
    cmp -s "$ROOT/requirements.txt" "$venv/installed.txt" && [ -x "$PY" ] && return
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or later is needed, found $("${PYTHON:-python3}" --version 2>&1); name another with PYTHON="
    echo "installing requirements.txt into $venv" >&2
    [ -x "$PY" ] || "${PYTHON:-python3}" -m venv "$venv"
    # What is imported compiles itself, in seconds; all of it takes as long as unpacking.
    "$PY" -m pip install --quiet --disable-pip-version-check --no-compile -r "$ROOT/requirements.txt"
    cp "$ROOT/requirements.txt" "$venv/installed.txt"
}

# The node list of SLURM or the usual variables, in torchrun's words.
rendezvous() {
    local nodes="${NNODES:-${SLURM_NNODES:-1}}"
    [[ "$nodes" =~ ^[1-9][0-9]{0,4}$ ]] || fail "NNODES=$nodes: expected a number of nodes"
    if [ "$nodes" = 1 ]; then
        echo --standalone
        return
    fi
    local address="${MASTER_ADDR:-}"
    [ -n "$address" ] || [ -z "${SLURM_JOB_NODELIST:-}" ] ||
        address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    [ -n "$address" ] || fail "NNODES=$nodes, but MASTER_ADDR does not say where the first node is"
    echo "--nnodes=$nodes --node-rank=${NODE_RANK:-${SLURM_NODEID:?NODE_RANK is not set}}" \
        "--master-addr=$address --master-port=${MASTER_PORT:-29500}"
}

count_gpus() { "$PY" -c 'import torch; print(torch.cuda.device_count())'; }

# --nproc as asked ($1), else one process a GPU ($2): of 3, 5, 6 or 7 GPUs as many as divide a batch.
count_processes() {
    local asked="$1" gpus="$2" most=1
    case "${asked:-1}" in 1 | 2 | 4 | 8) ;; *) fail "--nproc $asked: expected 1, 2, 4 or 8 processes" ;; esac
    [ "$gpus" -eq 0 ] || [ "${asked:-1}" -le "$gpus" ] || fail "--nproc $asked: there are $gpus GPUs"
    while [ -z "$asked" ] && [ "$((2 * most))" -le "$gpus" ] && [ "$most" -lt 8 ]; do most=$((2 * most)); done
    [ -n "$asked" ] || [ "$gpus" -le "$most" ] ||
        echo "$gpus GPUs found: using $most, as 1, 2, 4 or 8 processes divide a batch" >&2
    echo "${asked:-$most}"
}

train() {
    local processes="" data="$ROOT/data" only_list="" resumes="" arguments=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --nproc) processes="${2:?--nproc needs a number}"; shift 2; continue ;;
            --nproc=*) processes="${1#*=}"; shift; continue ;;
            --data) data="${2:?--data needs a folder}" ;;
            --data=*) data="${1#*=}" ;;
            --recipes | --explain) only_list=yes ;;
            --resume | --resume=*) resumes=yes ;;
        esac
        arguments+=("$1")
        shift
    done
    local trainer="$ROOT/train_gpt.py"
    [ -z "$only_list" ] || exec "$PY" "$trainer" "${arguments[@]}"

    local plan gpus fetch
    if [ -n "$resumes" ] && [ "${NODE_RANK:-${SLURM_NODEID:-0}}" != 0 ]; then
        plan="$(count_gpus)" # the checkpoint, and what it asks for, are on the first node
    else
        plan="$("$PY" "$trainer" --plan "${arguments[@]}")" # checks the command line too, before anything starts
    fi
    read -r gpus fetch <<<"$plan"
    # shellcheck disable=SC2086  # a module and its options
    [ -z "$fetch" ] || "$PY" -m $fetch --data "$data"
    processes="$(count_processes "$processes" "$gpus")"
    launch "$processes" "$gpus" "$trainer" "${arguments[@]}"
}

doctor() {
    local processes="" gpus arguments=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --nproc) processes="${2:?--nproc needs a number}"; shift ;;
            --nproc=*) processes="${1#*=}" ;;
            *) arguments+=("$1") ;;
        esac
        shift
    done
    gpus="$(count_gpus)"
    processes="$(count_processes "$processes" "$gpus")"
    launch "$processes" "$gpus" -m records.doctor ${arguments[@]+"${arguments[@]}"}
}

# Start a program ($3 on: a file, or -m and a module) in as many processes ($1) on so many GPUs ($2).
launch() {
    local processes="$1" gpus="$2" nodes
    shift 2
    if [ "$gpus" -eq 0 ]; then # glibc keeps what is freed: tensors need not be faulted in anew
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MALLOC_{MMAP,TRIM}_THRESHOLD_=$((2 ** 32))
    fi
    nodes="$(rendezvous)"
    if [ "$nodes" = --standalone ] && [ "$processes" = 1 ]; then
        unset RANK WORLD_SIZE LOCAL_RANK # of a launcher that is gone
        exec "$PY" "$@"
    fi
    # torchrun is a process group of its own, so that a signal reaches it once, from here; what it says of a run
    # that ended early is followed by what that run said last.
    LAST_WORDS="$(mktemp)"
    export LAST_WORDS
    set -m
    # shellcheck disable=SC2086  # $nodes is several words
    "$PY" -m torch.distributed.run $nodes --nproc-per-node="$processes" "$@" </dev/null &
    local torchrun=$! status=0 signal
    for signal in HUP INT TERM; do
        # shellcheck disable=SC2064  # its number as it is now
        trap "kill -$signal $torchrun" "$signal"
    done
    wait "$torchrun" || status=$?
    while kill -0 "$torchrun" 2>/dev/null; do # a signal interrupts `wait`
        status=0
        wait "$torchrun" || status=$?
    done
    if [ -s "$LAST_WORDS" ]; then { read -r status && cat; } <"$LAST_WORDS" >&2; fi # the run's own exit code
    rm "$LAST_WORDS"
    exit "$status"
}

export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
case "${1:-}" in
    -h | --help) help ;;
    test)
        set_up
        cd "$ROOT"
        export OMP_NUM_THREADS=1
        "$PY" -m ruff check .
        "$PY" -m mypy
        exec "$PY" -m pytest -q -n auto --dist loadgroup "${@:2}"
        ;;
    records | tune)
        set_up
        if [ "$1" = tune ]; then exec "$PY" -m records.tune "${@:2}"; fi
        exec "$PY" -m records "${@:2}"
        ;;
    doctor)
        set_up
        doctor "${@:2}"
        ;;
    *)
        for argument; do
            case "$argument" in -h | --help) help && exit ;; esac
        done
        set_up
        train "$@"
        ;;
esac
