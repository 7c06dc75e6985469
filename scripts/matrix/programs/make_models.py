"""Make the tiny models that need their libraries to be made: `python make_models.py FOLDER`. Weights are random."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", *(f"word{n}" for n in range(200))]
root = Path(sys.argv[1])
torch.manual_seed(0)


def make_bert(folder: Path, shard: str) -> None:
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256
    )
    BertModel(config).save_pretrained(folder, max_shard_size=shard)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{word[1:-1].lower()}_token": word for word in WORDS[:5]}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **named).save_pretrained(folder)


make_bert(root / "team/tiny-bert", "300KB")
unet = UNet2DModel(
    sample_size=8,
    block_out_channels=(32, 32),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
DDPMPipeline(unet, DDPMScheduler()).save_pretrained(root / "team/tiny-ddpm")
if "--sentences" in sys.argv:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(root / "team/tiny-bert"))
    pooling = modules.Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(root / "team/tiny-sentences"))
table = root / "datasets/team/tiny-data/data"
table.mkdir(parents=True, exist_ok=True)
(table / "train.csv").write_text("word,number\n" + "".join(f"{word},{n}\n" for n, word in enumerate(WORDS)))
(table / "test.csv").write_text("word,number\none,1\n")
(table.parent / "README.md").write_text(
    "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train.csv\n"
    "  - split: test\n    path: data/test.csv\n---\nWords and numbers.\n"
)
