"""Measure the learned gates of a model on some classes: `python -m experiments.gates MODEL --data_root D --out FILE`.

FILE is the table of a figure like the paper's of channel weights; `python -m experiments.figures` draws it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eca_hub.classifier import Classifier
from eca_hub.errors import UnknownName
from eca_hub.report.gates import mean_gates
from eca_hub.sweep.results import write_table
from eca_hub.train.data.parquet import ParquetData
from experiments.program import run_program

_NUM_IMAGES = 16
"""Of each class."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Release, package folder or OWNER/NAME.")
    parser.add_argument("--data_root", required=True, help="Folder with parquet files.")
    parser.add_argument("--labels", nargs="*", default=[], help="The classes; the first four by default.")
    parser.add_argument("--out", type=Path, required=True, help="The table, *_gates.csv.")
    args = parser.parse_args(arguments)
    data = ParquetData(args.data_root)
    source = data.source("test")
    if unknown := set(args.labels) - set(data.labels):
        raise UnknownName.among("class", unknown.pop(), data.labels, listing=", ".join(data.labels))
    images = {
        label: [source.read(int(i)) for i in np.flatnonzero(source.targets == data.labels.index(label))[:_NUM_IMAGES]]
        for label in args.labels or data.labels[:4]
    }
    write_table(mean_gates(Classifier.from_pretrained(args.model), images), args.out)
    return 0


if __name__ == "__main__":
    run_program(main)
