"""Weights in the order in which a CPU multiplies by them: oneDNN brings those of plain layers into it at each call.

oneDNN's operators are those that torch.compile calls where weights are frozen. They know neither gradients nor
autocast, so a packed layer asks a plain one where either is wanted.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paella.blocks import ResBlock

# what an operator computes in the same pass: its name, numbers, and which of several formulas
NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")
EXACT_GELU: tuple[str, list[float], str] = ("gelu", [], "none")
# With AMX a sum of at least so many products is added up in an order that depends on the number of rows, but up to so
# many rows always in the same (oneDNN of torch 2.13; `paella.batches` looks whether it is so).
LONG, FEW_ROWS = 1024, 32


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by such weights here: on ARM torch may call another library by the same name, and for
    bfloat16 it needs AVX-512."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    onednn = torch.ops.mkldnn
    known = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())
    return known and not onednn._is_mkldnn_acl_supported()


class Packed(nn.Module):
    """Takes the place of a layer that has learned: it says the same, and learns no more. The weights keep their names;
    a state dict has copies of them. Where it is moved, cast or filled by itself, they are plain from then on.

    Args:
        layer: the layer, which loses its weights.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.without_weight = (layer,)  # in a tuple, as it is no part of the network
        weight = layer.weight.detach()
        self.weight = nn.Parameter(self.pack(weight) if can_pack(weight) else weight, requires_grad=False)
        self.bias = layer.bias
        layer.weight = None

    def pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def unpack(self) -> Tensor:
        return self.weight.to_dense()

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def by_plain_layer(self, x: Tensor) -> Tensor:
        return self.plain_layer()(x)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.weight.is_mkldnn and x.dtype == self.weight.dtype and not torch.is_grad_enabled()
        return self.product(x) if packed else self.by_plain_layer(x)

    def plain_weight(self) -> Tensor:
        """The weights as the layer had them."""
        return self.unpack() if self.weight.is_mkldnn else self.weight

    def plain_layer(self) -> Any:
        """Such a layer as was packed."""
        layer = deepcopy(self.without_weight[0])
        layer.weight, layer.bias = nn.Parameter(self.plain_weight()), self.bias
        return layer

    def extra_repr(self) -> str:
        return self.without_weight[0].extra_repr()

    def __reduce__(self) -> tuple[Any, ...]:  # packed weights can be neither copied nor pickled
        return type(self), (self.plain_layer(),)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.weight = nn.Parameter(self.plain_weight(), requires_grad=False)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.weight = nn.Parameter(self.plain_weight(), requires_grad=False)
        super()._load_from_state_dict(*args)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + "weight": self.plain_weight(), prefix + "bias": self.bias.detach()})


class PackedLinear(Packed):
    """x·Wᵀ + b: (..., C) -> (..., C').

    Args:
        layer: an `nn.Linear`.
        gelu: whether an exact GELU follows, which is then computed in the same pass, and all of it rounded once.
    """

    def __init__(self, layer: nn.Linear, gelu: bool) -> None:
        super().__init__(layer)
        self.gelu = gelu

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.plain_layer(), self.gelu)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def product(self, x: Tensor) -> Tensor:
        after = EXACT_GELU if self.gelu else NO_ACTIVATION
        multiplied = torch.ops.mkldnn._linear_pointwise
        parts = [multiplied(part, self.weight, self.bias, *after) for part in x.split(self.at_once(x))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def at_once(self, x: Tensor) -> int:
        """How many of the batch (B,h,w,C) go into one product, so that each has the bits that a guided picture alone,
        a batch of two, would have. Parts of a large grid come as (n,C), and are not divided further."""
        if x.ndim < 4 or x.shape[-1] < LONG or not torch.cpu._is_amx_tile_supported():
            return max(len(x), 1)
        return max(2, FEW_ROWS // x.shape[1:-1].numel())

    def by_plain_layer(self, x: Tensor) -> Tensor:
        y = super().by_plain_layer(x)
        return F.gelu(y) if self.gelu else y


class PackedPointwise(Packed):
    """(B,C,h,w) -> (B,C',h,w), channels last.

    Args:
        layer: an `nn.Conv2d` of kernel 1 in one group: as a product over channels oneDNN computes it in half the time.
    """

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))

    def unpack(self) -> Tensor:
        return super().unpack()[:, :, None, None]

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.permute(0, 2, 3, 1), self.weight, self.bias, *NO_ACTIVATION)
        return y.permute(0, 3, 1, 2)


class PackedConv2d(Packed):
    """(B,C,h,w) -> (B,C',h',w').

    Args:
        layer: an `nn.Conv2d` that pads with zeros.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        super().__init__(layer)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, *NO_ACTIVATION)


class PackedConvTranspose2d(Packed):
    """(B,C,h,w) -> (B,C',h',w').

    Args:
        layer: an `nn.ConvTranspose2d`.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        self.geometry = (layer.padding, layer.output_padding, layer.stride, layer.dilation, layer.groups)
        super().__init__(layer)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *self.geometry)

    def unpack(self) -> Tensor:
        return super().unpack().transpose(0, 1)

    def product(self, x: Tensor) -> Tensor:
        by = torch.ops.mkldnn._convolution_transpose_pointwise
        return by(x, self.weight, self.bias, *self.geometry, *NO_ACTIVATION)


def pack(predictor: nn.Module, *, last_alone: bool = False) -> None:
    """Packs the residual blocks' layers, those that change the grid between them and the last one, in place, where a
    CPU gains by it. Pointwise layers only in bfloat16: float32 ones are not oneDNN's.

    Args:
        last_alone: the last one and no other, as where a compiler has the rest.
    """
    weight = next(predictor.parameters())
    if not can_pack(weight):
        return
    for parent in [predictor] if last_alone else list(predictor.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                if weight.dtype == torch.bfloat16 and layer.groups == 1:
                    setattr(parent, name, PackedPointwise(layer))
            elif isinstance(layer, nn.Conv2d):
                setattr(parent, name, PackedConv2d(layer))
            elif isinstance(layer, nn.ConvTranspose2d):
                setattr(parent, name, PackedConvTranspose2d(layer))
        if isinstance(parent, ResBlock) and weight.dtype == torch.bfloat16:
            layers: Any = parent.channelwise
            if isinstance(layers[0], nn.Linear):  # and neither packed nor in 8 bits
                layers[0], layers[2] = PackedLinear(layers[0], gelu=True), PackedLinear(layers[2], gelu=False)
                layers[1] = nn.Identity()  # the first one's


def unpack(predictor: nn.Module) -> None:
    """Undoes `pack`, in place: for all but drawing."""
    # a list of the packed layers, too, would keep all of them till the end, beside the plain ones
    for parent in [module for module in predictor.modules() if not isinstance(module, Packed)]:
        if isinstance(parent, ResBlock) and isinstance(parent.channelwise[0], PackedLinear):
            parent.channelwise[1] = nn.GELU()
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Packed):
                setattr(parent, name, layer.plain_layer())


def is_packed(predictor: nn.Module) -> bool:
    return any(isinstance(module, Packed) and module.weight.is_mkldnn for module in predictor.modules())
