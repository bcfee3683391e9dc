"""Weights in the order in which a CPU multiplies by them: oneDNN brings those of plain layers into it at each call.

oneDNN's operators are those that torch.compile calls where weights are frozen.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from paella.blocks import ResBlock

# what an operator computes in the same pass: its name, numbers, and which of several formulas
NOTHING: tuple[str, list[float], str] = ("none", [], "")
EXACT_GELU: tuple[str, list[float], str] = ("gelu", [], "none")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by such weights: on ARM torch may call another library by the same name."""
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    known = weight.dtype in (torch.bfloat16, torch.float32)
    return on_cpu and known and not torch.ops.mkldnn._is_mkldnn_acl_supported()


class Packed(nn.Module):
    """Takes the place of a layer that has learned: it says the same, and learns no more. The weights keep their names.
    Where it is moved or cast by itself, they are plain from then on.

    Args:
        layer: the layer, which loses its weights.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.empty = (layer,)  # in a tuple, as it is no part of the network
        weight = layer.weight.detach()
        self.weight = nn.Parameter(self.pack(weight) if can_pack(weight) else weight, requires_grad=False)
        self.bias = layer.bias
        layer.weight = None

    def pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def unpacked(self) -> Tensor:
        """The weights as the layer had them."""
        return self.dense() if self.weight.is_mkldnn else self.weight

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        # oneDNN's operators know neither gradients nor autocast
        as_packed = self.weight.is_mkldnn and x.dtype == self.weight.dtype
        differentiable = torch.is_grad_enabled() and x.requires_grad
        return self.product(x) if as_packed and not differentiable else self.by_layer(x)

    def by_layer(self, x: Tensor) -> Tensor:
        return functional_call(self.empty[0], {"weight": self.unpacked(), "bias": self.bias}, (x,))

    def plain(self) -> Any:
        """Such a layer as was packed."""
        layer = deepcopy(self.empty[0])
        layer.weight, layer.bias = nn.Parameter(self.unpacked()), self.bias
        return layer

    def __reduce__(self) -> tuple[Any, ...]:  # packed weights can be neither copied nor pickled
        return type(self), (self.plain(),)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.weight = nn.Parameter(self.unpacked(), requires_grad=False)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + "weight": self.unpacked(), prefix + "bias": self.bias.detach()})


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
        return type(self), (self.plain(), self.gelu)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def product(self, x: Tensor) -> Tensor:
        after = EXACT_GELU if self.gelu else NOTHING
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *after)

    def by_layer(self, x: Tensor) -> Tensor:
        y = super().by_layer(x)
        return F.gelu(y) if self.gelu else y


class PackedConv2d(Packed):
    """(B,C,h,w) -> (B,C',h',w').

    Args:
        layer: an `nn.Conv2d` that pads with zeros.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.sizes = (layer.padding, layer.stride, layer.dilation, layer.groups)
        super().__init__(layer)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.sizes)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.sizes, *NOTHING)


class PackedConvTranspose2d(Packed):
    """(B,C,h,w) -> (B,C',h',w').

    Args:
        layer: an `nn.ConvTranspose2d`.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        self.sizes = (layer.padding, layer.output_padding, layer.stride, layer.dilation, layer.groups)
        super().__init__(layer)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *self.sizes)

    def dense(self) -> Tensor:
        return super().dense().transpose(0, 1)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_transpose_pointwise(x, self.weight, self.bias, *self.sizes, *NOTHING)


def pack(predictor: nn.Module) -> None:
    """Packs the residual blocks' layers, and those that change the grid between them, in place, where a CPU gains by
    it. Pointwise layers only in bfloat16: float32 ones are not oneDNN's."""
    weight = next(predictor.parameters())
    if not can_pack(weight):
        return
    for parent in list(predictor.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                setattr(parent, name, PackedConv2d(layer))
            elif isinstance(layer, nn.ConvTranspose2d):
                setattr(parent, name, PackedConvTranspose2d(layer))
        if weight.dtype == torch.bfloat16 and isinstance(parent, ResBlock):
            pointwise = [layer for layer in parent.channelwise if isinstance(layer, nn.Linear)]
            if pointwise:  # and neither packed nor in 8 bits
                first, last = (PackedLinear(layer, gelu=i == 0) for i, layer in enumerate(pointwise))
                parent.channelwise = nn.Sequential(first, nn.Identity(), last)  # the last keeps its name


def unpack(predictor: nn.Module) -> None:
    """Undoes `pack`, in place."""
    # a list of the packed layers, too, would keep all of them till the end, beside the plain ones
    for parent in [module for module in predictor.modules() if not isinstance(module, Packed)]:
        if isinstance(parent, ResBlock) and isinstance(parent.channelwise[0], PackedLinear):
            parent.channelwise[1] = nn.GELU()
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Packed):
                setattr(parent, name, layer.plain())
