"""What anybody pays for a network: Python, torch, timm and the weights, with nothing done to have it sooner.

    python -m experiments.bench.import_baseline FOLDER        seconds from the start of this process, as JSON

FOLDER is a package that stock timm can load.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> None:
    """Load, and say how long it took."""
    import timm
    from safetensors.torch import load_file

    [folder] = argv
    config = json.loads(Path(folder, "config.json").read_text())
    network = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    network.load_state_dict(load_file(Path(folder, "model.safetensors")))
    # Ticks since the boot of the machine: Python itself had to start as well.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    print(json.dumps({"start_s": time.clock_gettime(time.CLOCK_BOOTTIME) - began_s}))


if __name__ == "__main__":
    main(sys.argv[1:])
