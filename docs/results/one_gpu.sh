#!/usr/bin/env bash
# The runs behind one_gpu.md and vehicle_khoa.md, by stages: data; note; search, tuned; rendered; scratch; transfer.
# usage: one_gpu.sh OUT STAGE...    A run is one process on one GPU; JOBS of them (default 4) share the GPUs (default "0").
# Run it from the project's root, with the packages on PATH (source .venv/bin/activate). A run that is there is left alone.
set -euo pipefail
out=$1
shift
backbones="VIT-S MAMBA-S MAMBA-V2"
rates="1e-4 3e-4 1e-3"
seeds="0 1 2"
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
mkdir -p "$out/log"

data() {
    python -m shards.write synthetic --identities 1000 --pictures 16 --cameras 6 --seed 0 --out "$out/data/synthetic" &
    python -m shards.write synthetic --identities 1000 --pictures 16 --cameras 6 --seed 1 --out "$out/data/search" &
    python -m shards.write synthetic --identities 2000 --pictures 16 --cameras 6 --seed 2 --objects vehicles --out "$out/data/vehicles" &
    python -m shards.write vehicle_khoa --root "${VEHICLE_KHOA:?the folder of the real set}" --out "$out/data/khoa" &
    wait
}

# one line of standard input a run: its name, then launcher.train's arguments
queue() {
    export out GPUS=${GPUS:-0}
    # shellcheck disable=SC2016  # the inner shell expands
    xargs -P "${JOBS:-4}" --process-slot-var=SLOT -d '\n' -I{} bash -c '
        set -- {}
        name=$1; shift; gpus=($GPUS)
        [ -f "$out/$name/metrics.json" ] && exit 0
        # a store each: so many runs would wait for one sqlite file
        export CUDA_VISIBLE_DEVICES=${gpus[SLOT % ${#gpus[@]}]} MLFLOW_TRACKING_URI="sqlite:///$(realpath "$out")/log/${name//\//-}.db"
        { python -m launcher.train --out "$out/$name" --resume auto "$@" && python -m launcher.evaluate --run "$out/$name"; } \
            >"$out/log/${name//\//-}.log" 2>&1 || echo "$name failed: $(tail -1 "$out/log/${name//\//-}.log")"'
}

note() {
    for backbone in $backbones; do echo "note/$backbone --backbone $backbone --data $out/data/synthetic"; done |
        { cat; echo "note/VIT-S-0.01 --backbone VIT-S --lr 0.01 --data $out/data/synthetic"; } | queue
}

# a sixth of the length and warm-up, other identities than those of the results
search() {
    for rate in $rates; do
        for backbone in $backbones; do
            echo "search/$backbone-$rate --backbone $backbone --lr $rate --epochs 10 --set optim.warmup_epochs=1.7 --data $out/data/search"
        done
    done | queue
}

best_rate() {
    python -c '
import json, sys
from pathlib import Path
runs = {path.parent.name.removeprefix(sys.argv[2] + "-"): json.loads(path.read_text())["mAP"] for path in Path(sys.argv[1]).glob(sys.argv[2] + "-*/metrics.json")}
print(max(runs, key=runs.get))' "$out/search" "$1"
}

# where the note's own rate is the best, its run is the tuned one
tuned() {
    for backbone in $backbones; do
        rate=$(best_rate "$backbone")
        [ "$rate" = 1e-4 ] || echo "tuned/$backbone --backbone $backbone --lr $rate --data $out/data/synthetic"
    done | queue
}

rendered() {
    for backbone in $backbones; do
        echo "rendered/$backbone --recipe vehicle_khoa --backbone $backbone --data $out/data/vehicles --epochs 30" \
            "--batch_size 64 --set data.pictures_per_identity=4 --set evaluation.both_directions=false"
    done | queue
}

scratch() {
    khoa scratch | queue
}

transfer() {
    for backbone in $backbones; do
        khoa transfer | grep -- "--backbone $backbone " | sed "s|\$| --set model.weights=$out/rendered/$backbone|"
    done | queue
}

khoa() {
    for seed in $seeds; do
        for backbone in $backbones; do
            echo "$1-$seed/$backbone --recipe vehicle_khoa --backbone $backbone --data $out/data/khoa --epochs 40 --set seed=$seed"
        done
    done
}

for stage in "$@"; do "$stage"; done
