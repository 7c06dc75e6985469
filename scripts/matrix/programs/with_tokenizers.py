"""tokenizers, whose Python package fetches by itself."""

from __future__ import annotations

from originals import ORIGINALS
from tokenizers import Tokenizer

local = Tokenizer.from_file(str(ORIGINALS / "team/tiny-bert/tokenizer.json"))
remote = Tokenizer.from_pretrained("team/tiny-bert")
assert remote.to_str() == local.to_str()
