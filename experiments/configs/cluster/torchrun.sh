#!/bin/sh
# Many machines by hand: the same line on each, in a copy of the repository. FIRST is the name of one of them; RUN
# lies on a disk that all share.
# Command: FIRST=node1 IMAGENET=/data/imagenet RUN=/shared/resnet50 sh experiments/configs/cluster/torchrun.sh
# torchrun starts the processes of a machine; when one dies it ends all, and starts them again to go on.
exec torchrun --nnodes 2 --nproc_per_node 4 --max_restarts 3 \
  --rdzv_backend c10d --rdzv_endpoint "${FIRST}:29500" --rdzv_id "${RUN}" \
  --no_python eca-hub fit --config experiments/configs/imagenet/paper_resnet.yaml --data.root "${IMAGENET}" \
  --run_dir "${RUN}" --resume --trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp --data.batch_size 32
