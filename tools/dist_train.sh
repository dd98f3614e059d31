#!/usr/bin/env bash
# Train on several GPUs of a machine, or, once on each of several machines, on all of theirs.
#
#   tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# GPUS are those of this machine. For several: NNODES machines, this one's NODE_RANK (0, 1, ...), and
# the MASTER_ADDR and PORT that rank 0 listens at. Jobs that share a machine need a PORT each.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [NNODES=1] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [PORT=29500]" \
        "$0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2

exec python -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
