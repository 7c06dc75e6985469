"""transformers: a model in shards, its tokenizer and its config, by the Auto classes and by a pipeline."""

from __future__ import annotations

import torch
from originals import ORIGINALS
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

NAME = "team/tiny-bert"
local, remote = (AutoModel.from_pretrained(source).state_dict() for source in (ORIGINALS / NAME, NAME))
assert local
assert local.keys() == remote.keys()
assert all(torch.equal(local[name], remote[name]) for name in local)
assert AutoConfig.from_pretrained(NAME).hidden_size == AutoConfig.from_pretrained(ORIGINALS / NAME).hidden_size
words = AutoTokenizer.from_pretrained(NAME)("one two three")["input_ids"]
assert words == AutoTokenizer.from_pretrained(ORIGINALS / NAME)("one two three")["input_ids"]
assert pipeline("feature-extraction", model=NAME)("one two")
