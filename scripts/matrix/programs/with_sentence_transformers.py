"""sentence-transformers: a model of several modules."""

from __future__ import annotations

import numpy as np
from originals import ORIGINALS
from sentence_transformers import SentenceTransformer

NAME = "team/tiny-sentences"
local, remote = (
    SentenceTransformer(source, device="cpu").encode("one two") for source in (str(ORIGINALS / NAME), NAME)
)
assert np.array_equal(local, remote)
