"""Matrix products by whoever makes them quickest.

A processor without 16-bit instructions takes 8 to 16 times as long over PyTorch's emulation as over float32 (AVX2,
PyTorch 2.13). Products of 16-bit numbers are exact in float32, so that only the order of the sums differs; the results
are rounded to 16 bits as the hardware would.

Of few rows, oneDNN multiplies quicker than MKL, which PyTorch asks on x86 and which then leaves threads idle: on 2 of
them decoding 8 rows takes 0.7 to 0.85 of the time (AVX2, PyTorch 2.13, 384 and 768 wide); on one it gains nothing.

By 16-bit weights that stay as they are, FBGEMM multiplies float32 without a float32 copy of them: the weights of a
model 384 wide times one row take 0.8 of the emulation's time, times 8 rows 0.35 of what casting them takes; 1,024 wide
0.5 and 0.14. It fills up the numbers of inputs to a multiple of 512, in memory, too.
"""

import platform
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel

EMULATED_ROWS = 4  # up to which emulation is quicker than casting the weight
ONEDNN_ROWS = 32  # up to which oneDNN is quicker than MKL
X86 = platform.machine() in ("x86_64", "AMD64")
FBGEMM = ("x86", "fbgemm") if X86 else ()  # PyTorch's names for it, where the processor has what it needs
PADDED = 512  # to a multiple of which FBGEMM fills up the numbers of inputs
MOST_FILLED = 0.35  # of them; beyond, memory counts more
# Of CUDA's kernels for attention PyTorch takes the first that can, on an H100 cuDNN's. That one has no place where rows
# are masked: under some masks it makes NaN of the queries' gradient (pytorch#196678, in 2.13). Nor where they grow
# token by token: it makes a plan for every length. What is allowed is the process's, not the thread's.
MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
GROWING = [SDPBackend.FLASH_ATTENTION, *MASKED]


def _cpu_multiplies(name: str) -> bool:
    """Whether oneDNN has kernels for the type here. PyTorch's own compiler asks the same way."""
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())


CPU_MULTIPLIES = {
    torch.float32: True,
    torch.bfloat16: _cpu_multiplies("bf16"),
    torch.float16: _cpu_multiplies("fp16"),
}
ONEDNN_IS_QUICKER = (
    torch.backends.mkldnn.is_available()
    and X86  # elsewhere nobody has looked
    and torch.get_num_threads() > 1
)


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of `dtype` would be emulated on `device`."""
    return device.type == "cpu" and not CPU_MULTIPLIES[dtype]


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what products of `dtype` are made on `device`."""
    return torch.float32 if emulated(dtype, device) else dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) @ weight (out, in).T + bias in x's dtype, to which both are cast here."""
    if torch.is_grad_enabled() and emulated(x.dtype, x.device) and x.numel() > EMULATED_ROWS * x.shape[-1]:
        return _Linear.apply(x, weight, bias)  # type: ignore[return-value]
    product = F.linear if torch.is_grad_enabled() else multiply
    return product(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for what is of one dtype and needs no gradient."""
    rows = x.numel() // x.shape[-1]
    compiling = torch.compiler.is_compiling()  # which knows this operation only as one that it made itself
    if x.is_cpu and x.dtype == torch.float32 and rows <= ONEDNN_ROWS and ONEDNN_IS_QUICKER and not compiling:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if x.is_cpu and not CPU_MULTIPLIES[x.dtype] and rows > EMULATED_ROWS:
        return multiply(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


Product = Callable[[Tensor], Tensor]


def product_with(weight: Tensor, bias: Tensor | None) -> Product:
    """`linear` by a weight that stays as it is, without gradients and for x of any dtype."""
    filled = -weight.shape[1] % PADDED / weight.shape[1]
    if emulated(weight.dtype, weight.device) and torch.backends.quantized.engine in FBGEMM and filled <= MOST_FILLED:
        largest = weight.abs().max()
        if largest.isfinite():
            return _Packed(weight, bias, largest)
    return lambda x: multiply(x.to(weight.dtype), weight, bias).to(x.dtype)


class _Packed:
    """A product by a 16-bit weight that FBGEMM packs, and widens in the processor's registers.

    It packs float16. A bfloat16 weight is scaled by the power of 2, 2^64 at most, that takes its largest number below
    2^16: what is less than 2^-32 of that then differs by at most 2^-40 of it, and all else is as it was.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, largest: Tensor) -> None:
        _, exponent = torch.frexp(largest.float())
        scale = 1.0 if weight.dtype == torch.float16 else 2.0 ** min(16 - int(exponent), 64)
        offset = None if bias is None else bias.float() * scale
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float().mul_(scale), offset)
        self.unscale = torch.tensor(1 / scale)

    def __call__(self, x: Tensor) -> Tensor:
        # Else PyTorch looks for overrides in the packed weight, for 10 microseconds.
        with torch._C.DisableTorchFunctionSubclass():
            product = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)
        product *= self.unscale
        return product if x.dtype == torch.float32 else product.to(x.dtype)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, both of one dtype."""
    if emulated(left.dtype, left.device):
        return (left.float() @ right.float()).to(left.dtype)
    return left @ right


def attend(q_BNTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, mask: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's fused attention, (B, N, T, D); query heads may share keys.

    `mask` (1 or B, 1, T, S) is True where a query sees a key, or is added to the scores, then of the dtype that they
    are `computed_in`.
    """
    dtype = q_BNTD.dtype
    if emulated(dtype, q_BNTD.device):
        q_BNTD, k_BKSD, v_BKSD = q_BNTD.float(), k_BKSD.float(), v_BKSD.float()
    shared = q_BNTD.shape[1] != k_BKSD.shape[1]
    with sdpa_kernel(MASKED) if mask is not None and q_BNTD.is_cuda else nullcontext():
        out_BNTD = F.scaled_dot_product_attention(
            q_BNTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=causal, enable_gqa=shared
        )
    return out_BNTD.to(dtype)


@torch.library.custom_op("sconce::rounded", mutates_args=())
def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In float32, rounded to `dtype`. An operation of its own: torch.compile would write a program for each shape."""
    return weight.to(dtype).float()


@_rounded.register_fake
def _(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


class _Linear(torch.autograd.Function):
    """Keeps x in its 16 bits for the gradient; autograd would keep the float32 copy."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rounded_bias = None if bias is None else bias.to(x.dtype).float()
        return F.linear(x.float(), _rounded(weight, x.dtype), rounded_bias).to(x.dtype)

    @staticmethod
    def backward(ctx: BackwardCFunction, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        grad_NO = grads[0].flatten(0, -2).float()
        grad_x = (grad_NO @ _rounded(weight, x.dtype)).to(x.dtype).view_as(x)
        grad_weight = grad_NO.T @ x.flatten(0, -2).float()
        return grad_x, grad_weight, grad_NO.sum(0) if ctx.needs_input_grad[-1] else None
