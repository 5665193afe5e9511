"""Products in float32, where a CPU would emulate those of 16-bit numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from sere.calibrate import float32_products as products
from sere.calibrate.float32_products import emulated_dtypes, float32_products
from sere.calibrate.in_memory import collect_in_memory
from sere.structure import find_experts
from tests.support.calibration import config, some_tokens
from tests.support.tiny import tiny_model

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
MULTIPLY = (linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, torch._grouped_mm)


@pytest.fixture(autouse=True)
def _emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for 16-bit numbers, whichever this one is."""
    both = frozenset({torch.bfloat16, torch.float16})
    monkeypatch.setattr(products, "emulated_dtypes", lambda: both)


class Seen(TorchFunctionMode):
    """Keeps the dtypes of what is multiplied; entered before ours, it sees what ours makes of it."""

    def __init__(self, *, least_rows: int = 0) -> None:
        super().__init__()
        self.least_rows = least_rows
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MULTIPLY and args[0].numel() >= self.least_rows * args[0].shape[-1]:
            self.dtypes += [one.dtype for one in args[:2]]
        return func(*args, **(kwargs or {}))


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape).to(dtype)


ENDS = torch.tensor([8, 8, 20, 32], dtype=torch.int32)
# With the shapes of the rows, of the weights, and of another operand that is not multiplied.
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda x, w, _: linear(x, w), (32, 16), (24, 16), (1,)),
    "linear with a bias": (linear, (2, 16, 16), (24, 16), (24,)),
    "@": (lambda x, w, _: x @ w, (32, 16), (16, 24), (1,)),
    "mm": (lambda x, w, _: torch.mm(x, w), (32, 16), (16, 24), (1,)),
    "bmm": (lambda x, w, _: torch.bmm(x, w), (3, 32, 16), (3, 16, 24), (1,)),
    "groups": (lambda x, w, _: torch._grouped_mm(x, w, offs=ENDS), (32, 16), (4, 16, 24), (1,)),
}


@DTYPES
@pytest.mark.parametrize("name", PRODUCTS)
def test_each_product_is_that_of_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    """The result is the number of its dtype that is nearest to the exact one, but for float32's own error."""
    function, *shapes = PRODUCTS[name]
    operands = [numbers(*shape, dtype=dtype) for shape in shapes]
    with Seen() as seen, float32_products():
        found = function(*operands)
    assert found.dtype is dtype
    assert seen.dtypes == [torch.float32] * len(seen.dtypes)
    assert seen.dtypes or name == "groups"
    rows, weight, bias = (one.double() for one in operands)
    if name == "groups":
        firsts = [0, *ENDS.tolist()]
        exact = torch.cat([rows[a:b] @ w for a, b, w in zip(firsts, firsts[1:], weight, strict=False)])
    else:
        exact = (
            rows @ weight if "linear" not in name else linear(rows, weight, bias if "bias" in name else None)
        )
    half = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), exact, rtol=1.01 * half, atol=1e-5)


def test_what_is_left_alone() -> None:
    """Few rows, other dtypes and weights that need gradients go to PyTorch as they are."""
    weight = numbers(24, 16)
    learned = nn.Linear(16, 24, dtype=torch.bfloat16)
    with Seen() as seen, float32_products():
        linear(numbers(7, 16), weight)
        linear(numbers(32, 16, dtype=torch.float32), weight.float())
        learned(numbers(32, 16))
    assert seen.dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 2


@pytest.mark.parametrize("name", ["linear with a bias", "groups"])
def test_gradients_pass_and_keep_no_copy_of_the_weights(name: str) -> None:
    """The gradient for the rows is that of float32, and what is kept for it is the weights themselves."""
    function, *shapes = PRODUCTS[name]
    rows, weight, other = (numbers(*shape) for shape in shapes)
    rows.requires_grad_()
    kept: list[int] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t),
        float32_products(),
    ):
        out = function(rows, weight, other)
        change = numbers(*out.shape)
        (found,) = torch.autograd.grad(out, rows, change)
    assert weight.data_ptr() in kept
    assert set(kept) <= {weight.data_ptr(), ENDS.data_ptr()}
    exact = rows.detach().double().requires_grad_()
    if name == "groups":
        firsts, w = [0, *ENDS.tolist()], weight.double()
        wide = torch.cat([exact[a:b] @ one for a, b, one in zip(firsts, firsts[1:], w, strict=False)])
    else:
        wide = linear(exact, weight.double())
    (expected,) = torch.autograd.grad(wide, exact, change.double())
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_calibration_multiplies_in_float32(architecture: str) -> None:
    """All products of enough rows are in float32, and the similarities as they were but for rounding."""
    model = tiny_model(architecture).to(torch.bfloat16)

    def similarities() -> Tensor:
        found = collect_in_memory(model, find_experts(model), some_tokens(), config("frobenius"))
        return torch.stack([one.similarity for one in found.similarities["frobenius"].values()])

    with Seen(least_rows=8) as seen:
        found = similarities()
    assert seen.dtypes
    assert {*seen.dtypes} == {torch.float32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "emulated_dtypes", frozenset)
        native = similarities()
    torch.testing.assert_close(found, native, rtol=0, atol=0.02, equal_nan=True)


@pytest.mark.parametrize(
    ("available", "able", "expected"),
    [
        (True, (True, True), set()),
        (True, (True, False), {torch.float16}),
        (True, (False, False), {torch.bfloat16, torch.float16}),
        (False, (False, False), set()),
    ],
)
def test_which_products_a_cpu_emulates(
    available: bool, able: tuple[bool, bool], expected: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that oneDNN says it has no instructions for; none where it is not there to be asked."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    for name, one in zip(("bf16", "fp16"), able, strict=True):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda one=one: one)
    assert emulated_dtypes() == expected
