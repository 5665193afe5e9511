"""Products in float32, where PyTorch would emulate those of bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

import sere
from sere.calibrate import float32_products as products
from sere.calibrate.float32_products import emulates_bfloat16, float32_products
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.errors import InputError
from sere.structure import find_experts
from sere.table import SimilarityTable
from tests.support.calibration import (
    ALL_METRICS,
    by_layers_of,
    char_tokenizer,
    config,
    in_memory_of,
    interrupt_at_sums,
    load_whole,
    some_tokens,
    worst,
)
from tests.support.tiny import tiny_model

MULTIPLY = (
    linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, torch._grouped_mm,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for bfloat16, whichever this one is."""
    monkeypatch.setattr(products, "emulates_bfloat16", lambda: True)


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
    "groups": (lambda x, w, _: torch._grouped_mm(x, w, offs=ENDS), (32, 16), (4, 16, 24), (1,)),
    "groups by position": (lambda x, w, _: torch._grouped_mm(x, w, ENDS), (32, 16), (4, 16, 24), (1,)),
}


def exactly(name: str, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the product in float64."""
    rows, weight, bias = rows.double(), weight.double(), bias.double()
    if name.startswith("groups"):
        firsts = [0, *ENDS.tolist()]
        return torch.cat([rows[a:b] @ w for a, b, w in zip(firsts, firsts[1:], weight, strict=False)])
    return linear(rows, weight, bias if "bias" in name else None) if "linear" in name else rows @ weight


@pytest.mark.parametrize("block", [2**24, 5 * 16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_each_product_is_that_of_float32_rounded_once(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block of weights or several, the result is the nearest bfloat16, but for float32's error."""
    monkeypatch.setattr(products, "_BLOCK", block)
    function, *shapes = PRODUCTS[name]
    operands = [numbers(*shape) for shape in shapes]
    with torch.no_grad(), Seen() as seen, float32_products():
        found = function(*operands)
    assert found.dtype is torch.bfloat16
    assert seen.dtypes
    assert {*seen.dtypes} == {torch.float32}
    half = torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(found.double(), exactly(name, *operands), rtol=1.01 * half, atol=1e-5)


def test_groups_of_few_rows_are_products_of_their_own() -> None:
    """A group of fewer than 8 rows goes to PyTorch as it is, beside groups that do not; one may be empty."""
    rows, weight = numbers(32, 16), numbers(4, 16, 24)
    with torch.no_grad(), Seen() as seen, float32_products():
        found = torch._grouped_mm(rows, weight, offs=torch.tensor([3, 3, 20, 25], dtype=torch.int32))
    assert seen.dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 2
    expected = [(rows[a:b].float() @ weight[e].float()) for a, b, e in ((0, 3, 0), (3, 20, 2), (20, 25, 3))]
    torch.testing.assert_close(found[:25].float(), torch.cat(expected), rtol=0.01, atol=1e-5)


class Wrapped(Tensor):
    """A subclass of tensors, as quantized weights are."""


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: linear(x[:7], w),
        lambda x, w: linear(x.float(), w.float()),
        lambda x, w: linear(x, w.as_subclass(Wrapped)),
        lambda x, w: linear(x, nn.Parameter(w)),
        lambda x, w: torch.bmm(x[None], w.mT[None]),
        lambda x, w: torch.mm(x, w.mT, out=torch.empty(32, 24, dtype=torch.bfloat16)),
        lambda x, w: linear(input=x, weight=w),
        lambda x, w: linear(x, w[0]),
        lambda x, w: x @ w[0],
    ],
    ids=[
        "few rows", "float32", "subclass", "weights that learn", "batches", "out", "by name", "vector",
        "@ vector",
    ],
)  # fmt: skip
def test_what_is_left_alone(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    """It goes to PyTorch as it is, and gives the same bits."""
    rows, weight = numbers(32, 16), numbers(24, 16)
    torch.manual_seed(1)
    expected = call(rows, weight)
    torch.manual_seed(1)
    with float32_products():
        found = call(rows, weight)
    assert torch.equal(found, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_wide_linear", None)
        torch.manual_seed(1)
        with float32_products():
            call(rows, weight)


def test_a_model_on_another_device_is_left_alone() -> None:
    """No mode is entered for it."""
    with float32_products("meta") as entered:
        assert entered is None


@pytest.mark.parametrize("name", PRODUCTS)
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
    (expected,) = torch.autograd.grad(exactly(name, exact, weight, other), exact, change.double())
    half = torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * half, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_calibration_multiplies_in_float32(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts' products are in float32, and the similarities as they were but for rounding."""
    model = tiny_model(architecture).to(torch.bfloat16)

    def similarities() -> Tensor:
        found = collect_in_memory(model, find_experts(model), some_tokens(), config("frobenius"))
        return torch.stack([one.similarity for one in found.similarities["frobenius"].values()])

    with Seen(least_rows=8) as seen:
        found = similarities()
    assert seen.dtypes.count(torch.float32) > 0.9 * len(seen.dtypes)
    monkeypatch.setattr(products, "emulates_bfloat16", lambda: False)
    torch.testing.assert_close(found, similarities(), rtol=0, atol=0.02, equal_nan=True)


def test_layer_by_layer_it_is_the_same(tmp_path: Path) -> None:
    """Read layer by layer, a model in bfloat16 has the same similarities to the bit."""
    path = tmp_path / "model"
    tiny_model("qwen3_moe").to(torch.bfloat16).save_pretrained(path)
    assert Skeleton(path).model.dtype is load_whole(path).dtype is torch.bfloat16
    whole = in_memory_of(path, *ALL_METRICS)
    with Seen(least_rows=8) as seen:
        layers = by_layers_of(path, tmp_path / "work", *ALL_METRICS)
    assert torch.float32 in seen.dtypes
    assert all(worst({name: whole[name]}, {name: layers[name]}) == 0 for name in ALL_METRICS)


@pytest.mark.parametrize("low_memory", [False, True], ids=["whole", "layer by layer"])
def test_a_table_and_a_work_folder_say_how_products_were_rounded(
    low_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Provenance says it, and a folder that was begun like this is another run's without emulation."""
    path, work = tmp_path / "model", tmp_path / "work"
    tiny_model("qwen3_moe").to(torch.bfloat16).save_pretrained(path)

    def table(folder: Path | None = None, dtype: torch.dtype | None = None) -> SimilarityTable:
        options: dict[str, Any] = {
            "max_tokens": 250, "seq_len": 16, "batch_size": 3, "progress": False, "dtype": dtype,
        }  # fmt: skip
        texts = ["The quick brown fox jumps over the lazy dog."] * 16
        return sere.calibrate(
            path, char_tokenizer(), texts, low_memory=low_memory, work_dir=folder, **options
        )

    where = {"device": "cpu", "bfloat16_products": "float32"}
    assert table().provenance["calibration"].items() >= where.items()
    assert "bfloat16_products" not in table(dtype=torch.float32).provenance["calibration"]
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 2)
        with pytest.raises(KeyboardInterrupt) if not low_memory else nullcontext():
            table(work)
    monkeypatch.setattr(products, "emulates_bfloat16", lambda: False)
    assert "bfloat16_products" not in table().provenance["calibration"]
    with pytest.raises(InputError, match="bfloat16_products"):
        table(work)


@pytest.mark.parametrize(
    ("available", "supported", "expected"),
    [(True, True, False), (True, False, True), (False, False, False), (True, None, False)],
)
def test_where_bfloat16_is_emulated(
    available: bool, supported: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where oneDNN says that the CPU has no instructions; not where it is not there, or cannot be asked."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    answer = None if supported is None else lambda: supported
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", answer)
    assert emulates_bfloat16() == expected
