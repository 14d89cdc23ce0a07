"""Choose how ECA is computed: by the compiled kernel, by few torch operations, by one operator, or by its layers.

A channel gate is bound by memory: it has to read the map once for the mean, and read and write it once for the
product. The compiled kernel (fused.py) visits each map twice while it is in the cache; in a residual block the same
visits compute the norm before the gate, the shortcut and the ReLU (block_end.py). Without the kernel, one autograd
function writes the gradient of the map once (operations.py), where autograd alone writes three maps and adds them.
Under torch.compile the kernel is one operator in training (custom_op.py). Tensors that are traced, transformed or
observed in another way go through the layers. Measured by experiments/bench/attention.py.

Shapes: N images, C channels, H height, W width, k kernel size.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from eca_hub.attention.cpu_kernel import custom_op, fused, operations

_DTYPES = (torch.float32, torch.float64)
"""What the torch operations here compute; fused.py has a list of its own."""


use_triton = False
"""Whether CUDA tensors go through the Triton kernel, which no GPU has run so far."""


def is_plain_conv(conv: nn.Module) -> bool:
    """Whether a module is exactly the Conv1d that ECA creates, so that its weight alone determines the result.

    False for a subclass, a bias, hooks, pruning, weight norm, any parametrization, or other hyperparameters.
    """
    if type(conv) is not nn.Conv1d:
        return False
    parameters, members = conv._parameters, conv.__dict__
    weight = parameters.get("weight")
    # Without a bias, Conv1d registers None; a bias that is a buffer or an attribute leaves no such entry.
    if weight is None or parameters.get("bias", weight) is not None:
        return False
    num_outputs, num_inputs, size = weight.shape
    return (
        num_outputs == num_inputs == conv.groups == 1
        and conv.stride == conv.dilation == (1,)
        and conv.padding == (size // 2,)
        and size % 2 == 1
        and conv.padding_mode == "zeros"
        and "forward" not in members
        and not has_hooks(conv)
    )


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether a hook is registered on one of these modules, or on all modules of the process."""
    if torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    for module in modules:
        if module is not None and (
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        ):
            return True
    return False


def is_eager(x_NCHW: Tensor) -> bool:
    """Whether a tensor is computed now: not traced, transformed or observed."""
    return (
        type(x_NCHW) is Tensor
        and not torch.compiler.is_compiling()
        # Reading is_cpu takes a tenth of the time of reading device.type.
        and (x_NCHW.is_cpu or x_NCHW.is_cuda)
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
    )


def is_eager_gradient(dy_NCHW: Tensor) -> bool:
    """Whether the kernel can compute with the gradient of a result: it is not recorded, traced or one of a batch."""
    return not torch.is_grad_enabled() and is_eager(dy_NCHW) and operations.has_memory(dy_NCHW)


def is_supported_layer(conv: nn.Module, x_NCHW: Tensor) -> bool:
    """Whether `rescale_channels` computes what mean, this convolution, sigmoid and product would."""
    if torch.compiler.is_compiling():
        # Inference first: what is read of the layer is checked again before each call of the compiled program.
        is_training = torch.is_grad_enabled() and is_plain_conv(conv)
        return is_training and is_supported_compiled(x_NCHW, conv.weight)  # type: ignore[arg-type]
    # First, because a traced tensor cannot be asked for more.
    return is_eager(x_NCHW) and is_plain_conv(conv) and is_supported(x_NCHW, conv.weight)  # type: ignore[arg-type]


def is_supported(x_NCHW: Tensor, weight_11k: Tensor) -> bool:
    """Whether `rescale_channels` supports these tensors."""
    if not is_eager(x_NCHW):
        return False
    if fused.is_supported(x_NCHW, weight_11k):
        return _has_accepted_dtypes(x_NCHW, weight_11k)
    # With a single image an autograd function costs more than it saves.
    is_worth_it = len(x_NCHW) > 1 or not requires_grad(x_NCHW, weight_11k)
    return x_NCHW.dtype in _DTYPES and x_NCHW.dtype == weight_11k.dtype and not _is_autocast(x_NCHW) and is_worth_it


def _has_accepted_dtypes(x_NCHW: Tensor, weight_11k: Tensor) -> bool:
    """Whether the layers accept this pair: autocast gives bfloat16 maps and leaves the weight in float32."""
    return x_NCHW.dtype == weight_11k.dtype or _is_autocast(x_NCHW)


def _is_autocast(x_NCHW: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu" if x_NCHW.is_cpu else "cuda")


def is_supported_compiled(x_NCHW: Tensor, weight_11k: Tensor) -> bool:
    """Whether torch.compile should call the operator: in training on the CPU.

    In inference the compiler makes one loop of the product and what follows it, which is faster than an operator.
    """
    return (
        fused.is_built
        and requires_grad(x_NCHW, weight_11k)
        and x_NCHW.is_cpu
        and x_NCHW.dtype in (torch.float32, torch.bfloat16)
        and x_NCHW.dtype == weight_11k.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
    )


def requires_grad(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def rescale_channels(x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
    """Compute x * sigmoid(conv1d(mean_HW(x))) for what `is_supported_layer` accepts."""
    if torch.compiler.is_compiling():
        return cast("Tensor", custom_op.rescale_channels(x_NCHW, weight_11k)[0])
    if use_triton and x_NCHW.is_cuda:
        from eca_hub.attention import triton_kernel

        if triton_kernel.is_supported(x_NCHW, weight_11k):
            return triton_kernel.rescale(x_NCHW, weight_11k)
    if requires_grad(x_NCHW, weight_11k):
        return cast("Tensor", _RescaleChannels.apply(x_NCHW, weight_11k))
    if fused.is_supported(x_NCHW, weight_11k):
        return fused.forward(x_NCHW, weight_11k, torch.empty_like(x_NCHW))
    mean_NC = operations.sum_space(x_NCHW).div_(x_NCHW.shape[2] * x_NCHW.shape[3])
    return x_NCHW * operations.correlate(mean_NC, weight_11k).sigmoid_()[:, :, None, None]


def is_supported_end(x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor) -> bool:
    """Whether a kernel computes the end of a residual block from these tensors, if its input is eager (`is_eager`)."""
    if x_NCHW.is_cuda:
        if not use_triton:
            return False
        from eca_hub.attention import triton_kernel

        return triton_kernel.is_supported(x_NCHW, weight_11k, shortcut_NCHW)
    is_readable = type(x_NCHW) is Tensor and fused.is_supported(x_NCHW, weight_11k, shortcut_NCHW)
    return is_readable and _has_accepted_dtypes(x_NCHW, weight_11k)


def rescale_add_relu(
    x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor, *, may_overwrite: bool = False
) -> Tensor | None:
    """Compute relu(x * sigmoid(conv1d(mean_HW(x))) + shortcut), the end of a residual block with ECA.

    Args:
        x_NCHW: The output of the residual branch.
        weight_11k: The kernel along the channels.
        shortcut_NCHW: The shortcut.
        may_overwrite: Whether the result may be written into x if no gradient is needed: x was just computed and
            has no other reference.

    Returns:
        None if the kernel does not support these tensors.
    """
    if not is_supported_end(x_NCHW, weight_11k, shortcut_NCHW):
        return None
    if x_NCHW.is_cuda:
        from eca_hub.attention import triton_kernel

        return triton_kernel.rescale(x_NCHW, weight_11k, shortcut_NCHW)
    if requires_grad(x_NCHW, weight_11k, shortcut_NCHW):
        return cast("Tensor", _RescaleAddReLU.apply(x_NCHW, weight_11k, shortcut_NCHW))
    if not may_overwrite:
        return fused.forward(x_NCHW, weight_11k, torch.empty_like(x_NCHW), shortcut_NCHW=shortcut_NCHW)
    if not x_NCHW.is_inference():
        torch.autograd.graph.increment_version(x_NCHW)
    return fused.forward(x_NCHW, weight_11k, x_NCHW, shortcut_NCHW=shortcut_NCHW)


class _RescaleChannels(torch.autograd.Function):
    # Without setup_context, because torch would look up a signature in every call.
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_11k: Tensor) -> Tensor:
        if fused.is_supported(x_NCHW, weight_11k):
            y_NCHW, saved_2NC = fused.forward_with_saved(x_NCHW, weight_11k)
        else:
            mean_NC = operations.sum_space(x_NCHW) / (x_NCHW.shape[2] * x_NCHW.shape[3])
            gate_NC = operations.correlate(mean_NC, weight_11k).sigmoid()
            y_NCHW, saved_2NC = x_NCHW * gate_NC[:, :, None, None], torch.stack([mean_NC, gate_NC])
        ctx.save_for_backward(x_NCHW, weight_11k, saved_2NC)
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_NCHW, weight_11k, saved_2NC = ctx.saved_tensors
        if is_eager_gradient(dy_NCHW) and fused.is_supported(x_NCHW, weight_11k):
            dx_NCHW, dweight_11k, _ = fused.backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC)
            return dx_NCHW, dweight_11k
        return operations.backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC)


class _RescaleAddReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_11k: Tensor, shortcut_NCHW: Tensor) -> Tensor:
        y_NCHW, saved_2NC = fused.forward_with_saved(x_NCHW, weight_11k, shortcut_NCHW)
        ctx.save_for_backward(x_NCHW, weight_11k, saved_2NC, y_NCHW)
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_NCHW, weight_11k, saved_2NC, y_NCHW = ctx.saved_tensors
        if is_eager_gradient(dy_NCHW):
            return fused.backward(dy_NCHW, x_NCHW, weight_11k, saved_2NC, y_NCHW)
        dsum_NCHW = torch.where(y_NCHW <= 0, torch.zeros_like(dy_NCHW), dy_NCHW)
        return *operations.backward(dsum_NCHW, x_NCHW, weight_11k, saved_2NC), dsum_NCHW
