"""diffusers: a pipeline, whose parts lie in folders."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline, UNet2DModel
from originals import ORIGINALS

NAME = "team/tiny-ddpm"
local, remote = (DDPMPipeline.from_pretrained(source).unet.state_dict() for source in (ORIGINALS / NAME, NAME))
assert local
assert all(torch.equal(local[name], remote[name]) for name in local)
assert UNet2DModel.from_pretrained(NAME, subfolder="unet").sample_size == 8
