#!/usr/bin/env bash
# The main job end to end on a synthetic set: shards, training of three backbones, evaluation, comparison.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PWD/.venv/bin:$PATH
# one rank a GPU, as many as divide the 4 identities of a batch; two on the CPU
gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
case $gpus in 0) ranks=2; export DS_ACCELERATOR=cpu ;; 1) ranks=1 ;; 2 | 3) ranks=2 ;; *) ranks=4 ;; esac
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
echo "then open http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
