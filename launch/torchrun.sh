#!/usr/bin/env bash
# One run in N processes on this node, one for each device:
#   launch/torchrun.sh 2 --config configs/quickstart.yaml --trainer.accelerator cpu
# On several nodes, start the same line on each:
#   NNODES=2 RDZV_ENDPOINT=node1:29500 launch/torchrun.sh 8 --config configs/quickstart.yaml
set -euo pipefail

mistake() {
    echo "error: $1; usage: launch/torchrun.sh N --config FILE [more of train.py's options]" >&2
    exit 2
}

processes=${1-}
nodes=${NNODES:-1}
[[ $processes =~ ^[1-9][0-9]*$ ]] || mistake "the number of processes N is '$processes'"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || mistake "NNODES is '$nodes'"
shift
(($#)) || mistake "nothing to run"

if ((nodes == 1)); then
    meeting=(--standalone)
else
    [[ ${RDZV_ENDPOINT-} ]] || mistake "NNODES is $nodes, so set RDZV_ENDPOINT=HOST:PORT"
    meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id lit_prune)
fi

share=$(($(nproc) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}

# An option given twice counts as given last, so yours win.
exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$processes" \
    "$(dirname "$0")/../train.py" --trainer.devices "$processes" --trainer.num_nodes "$nodes" "$@"
