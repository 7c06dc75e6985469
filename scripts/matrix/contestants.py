"""Which clients there are, what each needs, and which of their questions may be answered with a refusal."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["CLIENTS", "EXPECTED", "Client", "why_expected"]


class Client(NamedTuple):
    """A program in `programs`, and the packages that it needs, of PyPI or of npm, in the folder `environment`.

    `made`: it asks for models that make_models.py makes.
    """

    name: str
    program: str
    packages: tuple[str, ...] = ()
    environment: str = ""
    made: bool = False

    @property
    def is_javascript(self) -> bool:
        return self.program.endswith(".mjs")


# torch by its version, so that no build for CUDA comes.
_FRAMEWORKS = (
    "torch==2.13.0",
    "accelerate",
    "datasets",
    "diffusers",
    "sentence-transformers",
    "tokenizers",
    "transformers",
)
_NPM = ("@huggingface/hub", "@huggingface/transformers")

CLIENTS = (
    *(
        Client(name, "with_huggingface_hub.py", (name.replace("-", "=="),), name)
        for name in ("huggingface_hub-0.36.2", "huggingface_hub-1.33.0", "huggingface_hub-2.4.0")
    ),
    *(
        Client(name, f"with_{name.replace('-', '_')}.py", _FRAMEWORKS, "frameworks", made=True)
        for name in ("tokenizers", "transformers", "sentence-transformers", "diffusers", "datasets")
    ),
    Client("npm-hub", "with_hub.mjs", _NPM, "npm"),
    Client("npm-transformers", "with_transformers.mjs", _NPM, "npm", made=True),
    Client("llama.cpp", "as_llama_cpp.py"),
)

# Refusals that belong to what a client does: what is asked for is not there, and it goes on.
EXPECTED = (
    (404, r"/api/agent-harnesses", "huggingface_hub 1.33 and later, before all else: a list that the Hub alone has"),
    (404, r".*/absent\.(txt|json)", "the programs: whether a file exists"),
    (404, r".*/absent-branch(/.*)?", "the programs: whether a revision exists"),
    (401, r".*/absent-model(/.*)?", "the programs: whether a repository exists, which nobody is told"),
    (
        404,
        r".*/(adapter_config|added_tokens|chat_template|generation_config|processor_config|preprocessor_config"
        r"|video_preprocessor_config|image_processor_config|feature_extractor_config|special_tokens_map"
        r"|sentence_\w+_config|config_sentence_transformers|modules|router_config|quantize_config)\.json",
        "transformers and sentence-transformers: what a model may have",
    ),
    (404, r".*/(chat_template\.jinja|tokenizer\.model|spiece\.model|README\.md)", "transformers: likewise"),
    (404, r"/api/models/.*/tree/[^/]+/additional_chat_templates", "transformers: more templates for chats"),
    (404, r".*/custom_generate/generate\.py", "transformers: code that comes with a model"),
    (404, r".*/model\.safetensors", "transformers, HfApi, npm: the whole model, before the index of its shards"),
    (404, r"/datasets/.*/(dataset_infos\.json|\.huggingface\.yaml|tiny-data\.py)", "datasets: older ways to say it"),
    (404, r".*/diffusion_pytorch_model\.safetensors\.index\.json", "diffusers: whether a part is in shards"),
)  # fmt: skip


def why_expected(status: int, path: str) -> str | None:
    """Who asks for what is refused, and why; None if it should have been there."""
    for known, pattern, why in EXPECTED:
        if status == known and re.fullmatch(pattern, path):
            return why
    return None
