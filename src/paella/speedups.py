"""What makes a loaded model faster: 8-bit products and compilation, which cost something, if asked for; CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from paella.blocks import ResBlock
from paella.gpu import Replayed
from paella.packing import EXACT_GELU, NO_ACTIVATION, PackedLinear, pack, unpack

if TYPE_CHECKING:
    from paella.checkpoint import Predictor
    from paella.vqgan import VQGAN


ROUNDS = 1.5 * 2**23  # a float32 to which this is added is a whole number, and its last bits are those of an integer


class Int8Linear(nn.Module):
    """x·Wᵀ + b with both factors in 8 bits, by oneDNN on a CPU; takes the place of a layer that has learned.

    Weights have a scale for each output. Inputs have one scale and one zero point, from their least and greatest value
    at each call: nothing needs to be calibrated.

    Args:
        codes: (C',C) int8.
        scale: (C',) float32; W is codes times scale.
        bias: (C',) float32.
        gelu: whether an exact GELU follows, which is then computed in the same pass.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor, gelu: bool) -> None:
        super().__init__()
        self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self.scale, self.bias, self.gelu = scale, bias, gelu
        self.zero_points = torch.zeros(len(scale), dtype=torch.int64)

    @classmethod
    def of(cls, linear: nn.Linear, gelu: bool) -> Int8Linear:
        """The layer in 8 bits; its weights are copied."""
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        codes = (weight / scale[:, None]).round().to(torch.int8)
        return cls(codes, scale, linear.bias.detach().float(), gelu)

    def codes(self) -> Tensor:
        return self.packed.to_dense().T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C'), in the input's dtype."""
        return self.product(x.detach().to(torch.float32, copy=True), x.dtype)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., C) float32, which is overwritten -> (..., C') of that dtype."""
        low, high = x.aminmax()
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / 254).clamp(min=1e-12)  # of 255 codes, and one to spare, as the zero point is rounded up
        zero_point = (-low / scale).ceil()  # never down: the code of the lowest must not be below 0
        whole = torch.add(zero_point + ROUNDS, x, alpha=(1 / scale).item(), out=x)
        return torch.ops.onednn.qlinear_pointwise(
            whole.view(torch.int32).to(torch.uint8),  # the lowest byte
            scale,
            zero_point.int(),
            self.packed,
            self.scale,
            self.zero_points,
            self.bias,
            1.0,  # of an output in 8 bits, which this is not
            0,
            dtype,
            *(EXACT_GELU if self.gelu else NO_ACTIVATION),
        )

    def __reduce__(self) -> tuple[Any, ...]:  # packed codes can be neither copied nor pickled
        return Int8Linear, (self.codes(), self.scale, self.bias, self.gelu)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """For a fingerprint; no layer is filled from it."""
        own = {"codes": self.codes(), "scale": self.scale, "bias": self.bias}
        destination.update({prefix + name: value for name, value in own.items()})


class Int8Pointwise(nn.Sequential):
    """The pointwise layers of a residual block; what is between them is rounded to 8 bits where it lies."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C'), in the input's dtype."""
        first, last = cast(Iterable[Int8Linear], self)
        return last.product(first.product(x.detach().to(torch.float32, copy=True), torch.float32), x.dtype)


def check_int8(device: torch.device, dtype: torch.dtype) -> None:
    """Makes sure that a predictor of that dtype, there, can be put into 8 bits.

    Raises:
        ValueError: it is on a GPU or float16, or the processor has no 8-bit dot products (VNNI).
    """
    if device.type != "cpu":
        raise ValueError(f"quantize: int8 is for the CPU, and the model is on {device.type!r}")
    if dtype == torch.float16:
        raise ValueError("quantize: int8 goes together with float32 and bfloat16, not with float16")
    if not torch.cpu._is_vnni_supported():
        raise ValueError("quantize: int8 needs a processor with 8-bit dot products (VNNI), which this one has not")


def is_quantized(predictor: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in predictor.modules())


def quantize_int8(predictor: nn.Module) -> None:
    """Puts the pointwise layers of the residual blocks, most of the work, into 8 bits, in place.

    Not those of blocks with less than half of the lowest level's channels: with AMX, rounding what goes in takes as
    long as their products save, and of the built-in model these few made most of the error.

    Raises:
        ValueError: the predictor has no such blocks, or see `check_int8`.
    """
    blocks = [block for block in predictor.modules() if isinstance(block, ResBlock)]
    if not blocks:
        raise ValueError(f"quantize: int8 is for the convolutional predictor, and this is a {type(predictor).__name__}")
    check_int8(blocks[0].gamma.device, blocks[0].gamma.dtype)
    widest = max(len(block.gamma) for block in blocks)
    for block in (block for block in blocks if 2 * len(block.gamma) >= widest):
        pointwise = [layer for layer in block.channelwise if isinstance(layer, nn.Linear | PackedLinear)]
        first, last = (layer.plain_layer() if isinstance(layer, PackedLinear) else layer for layer in pointwise)
        block.channelwise = Int8Pointwise(Int8Linear.of(first, gelu=True), Int8Linear.of(last, gelu=False))


class Compiled:
    """A method of tensors, compiled at the first call of each size."""

    def __init__(self, method: Callable[..., Tensor], how: dict[str, Any]) -> None:
        self.method, self.how = method, how
        self.compiled = torch.compile(method, dynamic=False, **how)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.compiled(*inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of the object compile their own method: what is compiled knows the weights that it was made for."""
        return Compiled, (self.method, self.how)


def compile_steps(predictor: nn.Module) -> None:
    """Compiles what is computed at every step, in place, at the first call of each size and batch, for about a minute.

    On a CPU weights are frozen into the compiled code; on a GPU a step is replayed as one CUDA graph, as it is without
    being compiled, too (`replay`). The time embedding is no part of it: compiled sines of angles up to 10000 are off by
    more than the network bears.
    """
    vars(predictor).pop("step", None)
    unpack(predictor)  # frozen weights are packed by the compiler
    how: dict[str, Any] = {"mode": "reduce-overhead"}
    if next(predictor.parameters()).device.type == "cpu":
        how = {"options": {"freezing": True}}
    predictor.step = Compiled(predictor.step, how)  # type: ignore[arg-type,assignment]
    pack(predictor, last_alone=True)  # which is no part of a step


def is_compiled(predictor: nn.Module) -> bool:
    return isinstance(predictor.step, Compiled)


def replay(predictor: Predictor, vqgan: VQGAN) -> None:
    """Lets a GPU replay what is computed at every step, where it is not compiled, and the decoder; in place."""
    if not is_compiled(predictor):
        vars(predictor).pop("step", None)
        predictor.step = Replayed(predictor.step, predictor.clf.weight)  # type: ignore[method-assign,assignment]
    vars(vqgan).pop("decode_latent", None)
    vqgan.decode_latent = Replayed(vqgan.decode_latent, vqgan.post_quant_conv.weight)  # type: ignore[method-assign,assignment]
