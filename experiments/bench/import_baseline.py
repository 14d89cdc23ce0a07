"""Seconds to import torch and timm and to load the weights, from the start of the process: no service can start sooner.

    python -m experiments.bench.import_baseline timm|eca_hub FOLDER

`timm` is stock timm and safetensors. `eca_hub` is `Classifier.from_pretrained`, which also reads, hashes and verifies
the package. Neither contains HTTP, optimization, the parity check or a run of the network. FOLDER is a package that
stock timm can load. Prints one JSON object.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> None:
    """Load, and print how long it took."""
    library, folder = argv
    if library == "timm":
        _load_with_timm(folder)
    else:
        from eca_hub import Classifier

        Classifier.from_pretrained(folder)
    # Ticks since the boot of the machine: Python itself had to start as well.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    print(json.dumps({"start_s": time.clock_gettime(time.CLOCK_BOOTTIME) - began_s}))


def _load_with_timm(folder: str) -> None:
    import timm
    from safetensors.torch import load_file

    config = json.loads(Path(folder, "config.json").read_text())
    network = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    network.load_state_dict(load_file(Path(folder, "model.safetensors")))


if __name__ == "__main__":
    main(sys.argv[1:])
