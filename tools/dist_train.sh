#!/usr/bin/env bash
# Train on several GPUs of one machine or of several machines.
#
#   tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# GPUS is the number of GPUs of this machine. To train on several machines, start this script on each
# of them with these variables: NNODES, the number of machines; NODE_RANK, the number of this machine
# (0, 1, ...); MASTER_ADDR and PORT, the address and port of machine 0. Two jobs on the same machine
# need different values of PORT.
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
