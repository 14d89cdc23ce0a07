#!/bin/sh
# One machine: a process for each of its GPUs. Run it again after a crash: --resume goes on from the newest checkpoint.
# Command: IMAGENET=/data/imagenet RUN=runs/resnet50 sh experiments/configs/cluster/node.sh
# A network that fills a GPU is cut up among all of them by --trainer.strategy fsdp.
exec eca-hub fit --config experiments/configs/imagenet/paper_resnet.yaml --data.root "${IMAGENET}" --run_dir "${RUN}" --resume \
  --trainer.devices 4 --trainer.strategy ddp --trainer.sync_batchnorm true
