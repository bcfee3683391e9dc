"""A trained U-Net made deeper, to be trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from paella.blocks import ResBlock
from paella.unet import TokenPredictor


@torch.no_grad()
def grown(predictor: TokenPredictor, down_levels: tuple[int, ...], up_levels: tuple[int, ...]) -> TokenPredictor:
    """A U-Net with more blocks that computes what the given one does: behind those that it has, each level gets blocks
    whose last layer is zero.

    Raises:
        ValueError: it has other levels, more blocks in one of them, or kernels of several sizes.
    """
    config = predictor.config
    for key, have, want in (("down", config.down_levels, down_levels), ("up", config.up_levels, up_levels)):
        if len(have) != len(want) or any(old > new for old, new in zip(have, want, strict=True)):
            raise ValueError(f"model.{key}_levels: a U-Net of {have} cannot grow to {want}")
    if len(set(config.kernels)) > 1:
        raise ValueError("grow: a U-Net whose kernels differ from block to block cannot grow")
    larger = TokenPredictor(replace(config, down_levels=down_levels, up_levels=up_levels))
    larger.embedding.load_state_dict(predictor.embedding.state_dict())
    larger.clf.load_state_dict(predictor.clf.state_dict())
    for old_half, new_half in ((predictor.down_blocks, larger.down_blocks), (predictor.up_blocks, larger.up_blocks)):
        for old_level, new_level in zip(old_half.children(), new_half.children(), strict=True):
            for kind in (ResBlock, nn.Conv2d, nn.ConvTranspose2d):
                old = [block for block in old_level.children() if isinstance(block, kind)]
                new = [block for block in new_level.children() if isinstance(block, kind)]
                for given, block in zip(old, new, strict=False):
                    block.load_state_dict(given.state_dict())
                for block in new[len(old) :]:
                    assert isinstance(block, ResBlock)
                    for parameter in block.channelwise[-1].parameters():
                        nn.init.zeros_(parameter)
    return larger
