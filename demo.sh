#!/usr/bin/env bash
# The main job end to end on a synthetic set: shards, training of three backbones on RANKS ranks, evaluation, comparison.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PWD/.venv/bin:$PATH
ranks=${RANKS:-2}
if ! nvidia-smi -L >/dev/null 2>&1; then export DS_ACCELERATOR=cpu; fi
backbones=(VIT-S MAMBA-S MAMBA-V2)
data=runs/demo/data
launch() { deepspeed --num_gpus "$ranks" --log_level warning --module "$@"; }

rm -rf runs/demo
python -m shards.write synthetic --identities 48 --cameras 4 --pictures 8 --out "$data"
python -m shards.verify "$data"
for backbone in "${backbones[@]}"; do
    echo "== $backbone: training on $ranks ranks"
    launch launcher.train --recipe demo --backbone "$backbone" --data "$data" --out "runs/demo/$backbone"
    echo "== $backbone: evaluation on $ranks ranks"
    launch launcher.evaluate --run "runs/demo/$backbone"
done
echo "== comparison"
python -m launcher.compare "${backbones[@]/#/runs/demo/}" --out runs/demo/report
echo "browse the runs: .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
