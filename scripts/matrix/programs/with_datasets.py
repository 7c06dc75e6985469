"""datasets: tables as a whole and as a stream."""

from __future__ import annotations

import csv

from datasets import load_dataset
from originals import ORIGINALS

NAME = "team/tiny-data"
with open(ORIGINALS / "datasets" / NAME / "data" / "train.csv") as stream:
    rows = [{"word": row["word"], "number": int(row["number"])} for row in csv.DictReader(stream)]
assert rows
assert list(load_dataset(NAME, split="train")) == rows
assert list(load_dataset(NAME, split="train", streaming=True)) == rows
assert len(load_dataset(NAME)["test"]) == 1
