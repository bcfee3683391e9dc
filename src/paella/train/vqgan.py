"""Trains the tokenizer: L1 and gradient loss, a learned codebook, then a patch discriminator (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from paella.checkpoint import about_argument, load_vqgan, save_vqgan
from paella.data import collate, length, open_data
from paella.evaluate.metrics import codebook_usage, psnr
from paella.images import contact_sheet, to_pictures
from paella.processes import mean_of_all, place
from paella.train.loop import Loss, Stage, train
from paella.train.recipe import Recipe, check_shares
from paella.vqgan import VQGAN, NearestQuantizer, VQGANConfig


@dataclass
class VQGANRecipe(Recipe):
    model: VQGANConfig = field(default_factory=VQGANConfig)
    gradient_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99
    revive_below: float = 0.5  # codes used less often than this per batch (moving average) start anew from the data
    decoder_only: bool = False  # tokens stay what they are, so that a predictor trained on them stays good
    # Pictures that show the colour of their corner alone: a decoder that never saw an empty place draws grids there.
    plain_share: float = 0.1
    discriminator_from: int = 0  # step at which the discriminator starts to learn
    adversarial_from: int | None = None  # step at which it starts to count; None = never
    adversarial_weight: float = 0.5
    adaptive_limit: float = 1.0  # the adaptive weight (gradient norm ratio) is clamped to this

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "", "codebook_decay", "plain_share")


class Autoencoder(nn.Module):
    """The VQGAN with a codebook that learns (vector-quantize-pytorch: moving averages, start from data, revival)."""

    def __init__(self, recipe: VQGANRecipe) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        with about_argument("init_from"):
            self.vqgan = VQGAN(recipe.model) if recipe.init_from is None else load_vqgan(recipe.init_from).train()
        if not isinstance(self.vqgan.quantize, NearestQuantizer):
            raise ValueError(f"model.quantizer: only nearest can be trained here, not {self.vqgan.config.quantizer}")
        self.vqgan.quantize.requires_grad_(False)  # a copy of the learning codebook, made by `finished`
        self.decoder_only = recipe.decoder_only
        if recipe.decoder_only:
            if recipe.init_from is None:
                raise ValueError("decoder_only: needs init_from, a VQGAN whose encoder is trained already")
            self.vqgan.encoder.requires_grad_(False)
            self.vqgan.quant_conv.requires_grad_(False)
            return
        self.codebook = VectorQuantize(
            dim=self.vqgan.config.embed_dim,
            codebook_size=self.vqgan.config.n_embed,
            decay=recipe.codebook_decay,
            commitment_weight=recipe.commitment_weight,
            kmeans_init=recipe.init_from is None,
            kmeans_iters=10,
            threshold_ema_dead_code=recipe.revive_below,
            sync_codebook=place()[1] > 1,
            accept_image_fmap=True,
        )
        if recipe.init_from is not None:
            codes = self.vqgan.quantize.embedding.weight[None]
            self.codebook._codebook.embed.copy_(codes)
            self.codebook._codebook.embed_avg.copy_(codes)
            self.codebook._codebook.cluster_size.fill_(1.0)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,3,H,W) in [0, 1] -> reconstruction, commitment loss."""
        if self.decoder_only:
            quantized = self.vqgan.quantize.lookup(self.vqgan.encode(pixels))
            return self.vqgan.decode_latent(quantized), torch.zeros((), device=pixels.device)
        z = self.vqgan.latent(pixels)
        with torch.autocast(z.device.type, enabled=False):
            quantized, _, commitment = self.codebook(z.float())
        return self.vqgan.decode_latent(quantized), commitment.sum()

    def finished(self) -> VQGAN:
        """The VQGAN with the codebook as it stands."""
        if not self.decoder_only:
            self.vqgan.quantize.load_state_dict({"embedding.weight": self.codebook.codebook})
        return self.vqgan


class PatchDiscriminator(nn.Sequential):
    """Judges overlapping patches: pixels (B,3,H,W) -> scores (B,1,H/8,W/8), high for real."""

    def __init__(self, channels: int = 32) -> None:
        layers: list[nn.Module] = []
        width = 3
        for level in range(3):
            layers += [nn.Conv2d(width, channels * 2**level, 4, 2, 1), nn.LeakyReLU(0.2)]
            width = channels * 2**level
            if level:
                layers.insert(-1, nn.GroupNorm(8, width))
        super().__init__(*layers, nn.Conv2d(width, 1, 3, padding=1))


class VQGANStage(Stage):
    shipped = "autoencoder"

    def __init__(self, recipe: VQGANRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)  # of the initial weights
        self.autoencoder = Autoencoder(recipe)
        recipe.data.check_fits(self.autoencoder.vqgan.config.f)
        self.data = open_data(recipe.data, recipe.seed)
        self.modules = {"autoencoder": self.autoencoder}
        if recipe.adversarial_from is not None:
            self.modules["discriminator"] = PatchDiscriminator()
        unseen = self.data if recipe.data.folder else open_data(recipe.data, recipe.seed + 1)
        count = min(256, length(unseen) or 256)
        self.fixed, _ = collate([unseen[i] for i in range(count)])

    def losses(self, pixels: Tensor, captions: list[str], step: int) -> Iterator[Loss]:
        autoencoder = self.modules["autoencoder"]
        plain = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < self.recipe.plain_share
        pixels = torch.where(plain, pixels[..., :1, :1], pixels).contiguous(memory_format=torch.channels_last)
        judged = self.recipe.adversarial_from is not None and step >= self.recipe.discriminator_from
        output, commitment = autoencoder(pixels)
        output = output.float()
        l1 = F.l1_loss(output, pixels)
        difference = l1 + self.recipe.gradient_weight * gradient_loss(output, pixels)
        metrics = {"l1": l1, "commitment": commitment}
        adversarial = torch.zeros((), device=pixels.device)
        if judged and step >= (self.recipe.adversarial_from or 0):
            discriminator = self.modules["discriminator"]
            discriminator.requires_grad_(False)  # the autoencoder's loss is not to leave a gradient in it
            adversarial = -discriminator(output).float().mean()
            discriminator.requires_grad_(True)
            weight = self._adaptive_weight(difference, adversarial)
            metrics |= {"adversarial": adversarial, "adaptive weight": weight}
            adversarial = self.recipe.adversarial_weight * weight * adversarial
        yield "autoencoder", difference + commitment + adversarial, metrics
        if judged:
            discriminator = self.modules["discriminator"]
            real, fake = discriminator(pixels).float(), discriminator(output.detach()).float()
            loss = (F.relu(1 - real) + F.relu(1 + fake)).mean() / 2
            yield "discriminator", loss, {"discriminator": loss, "real": real.mean(), "fake": fake.mean()}

    def _adaptive_weight(self, difference: Tensor, adversarial: Tensor) -> Tensor:
        """Balances the two losses by their gradients at the decoder's last layer, clamped: else it ruins runs."""
        last = self.autoencoder.vqgan.decoder.conv_out.weight
        losses = (difference, adversarial)
        gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in losses]
        ours, theirs = mean_of_all(torch.stack(gradients)).flatten(1).norm(dim=1)
        return (ours / (theirs + 1e-6)).clamp(0, self.recipe.adaptive_limit).detach()

    def preview(self, shipped: nn.Module) -> Image.Image:
        pixels = self.fixed[:16].to(self.device)
        output = shipped(pixels)[0]
        return contact_sheet(to_pictures(torch.stack([pixels, output], dim=1).flatten(0, 1)), columns=8)

    def evaluate(self, shipped: nn.Module) -> dict[str, float]:
        assert isinstance(shipped, Autoencoder)
        return reconstruction_figures(shipped.finished(), self.fixed.to(self.device))

    def save(self, shipped: nn.Module, folder: Path) -> None:
        assert isinstance(shipped, Autoencoder)
        save_vqgan(shipped.finished(), folder)


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences: keeps edges crisp."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def reconstruction_figures(vqgan: VQGAN, pixels: Tensor) -> dict[str, float]:
    """PSNR in dB (mean over pictures) and the share of codes in use, over pixels (B,3,H,W) in [0, 1]."""
    tokens = torch.cat([vqgan.encode(part) for part in pixels.split(32)])
    output = torch.cat([vqgan.decode(part) for part in tokens.split(32)])
    return {
        "PSNR": psnr(output, pixels).mean().item(),
        "codes used": codebook_usage(tokens, vqgan.config.n_embed)["used"],
    }


def main(recipe: VQGANRecipe) -> Path:
    return train(VQGANStage(recipe), recipe)
