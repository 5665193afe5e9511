"""vLLM's expert kernel on a CPU computes only the pairs that carry weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sere.flatten import Costs
from sere.flatten.costs import ROWS
from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker import flat_experts
from sere.integrations.vllm.worker.flat_experts import FlatExperts, FlatKernels, why_no_pairs
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.reroute.constants import LAYER_BUDGET
from tests.support.vllm.int8 import needs_int8_kernel

T, K, H, E = 6, 4, 64, 8


class Kernel:
    """Counts the slots of its calls and computes each row's weighted sum of ids."""

    def __init__(self) -> None:
        self.slots: list[int] = []

    def apply(self, output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        """Compute one step."""
        self.slots.append(ids.numel())
        output.copy_((weights * ids).sum(1, keepdim=True) * hidden)


def step(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weights of which 10 of 24 are 0, and ids of which one stands twice in a row."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(T, K, generator=generator)
    weights.view(-1)[::3] = 0
    weights[0] = 0
    ids = torch.randint(E, (T, K), generator=generator, dtype=torch.int32)
    ids[2, 2] = ids[2, 0]
    return torch.randn(T, H, generator=generator).to(dtype), weights, ids


def run(flat: FlatExperts, call: Any, dtype: torch.dtype = torch.float32, w1: Tensor | None = None) -> Tensor:
    hidden, weights, ids = step(dtype)
    output = torch.full_like(hidden, 7)
    flat(call, torch.empty(0) if w1 is None else w1, output, hidden, weights, ids)
    return output


@pytest.fixture
def budgets() -> RowBudgets:
    """The budgets of a step of rows that may all be re-routed."""
    found = RowBudgets(16, torch.device("cpu"))
    found.announce(np.full(T, LAYER_BUDGET, dtype=np.int32))
    return found


def test_pairs_of_a_rerouted_step(budgets: RowBudgets) -> None:
    """The kernel gets one slot per pair; the output is that of all slots, and 0 for a row without weight."""
    kernel = Kernel()
    flat = FlatExperts(kernel.apply, E, "on", budgets)
    hidden, weights, ids = step()
    found = run(flat, kernel.apply)
    torch.testing.assert_close(found, (weights * ids).sum(1, keepdim=True) * hidden)
    assert not found[0].any()
    assert kernel.slots == [flat.counts.pairs]
    assert flat.counts.pairs < int((weights != 0).sum())
    assert (flat.counts.steps, flat.counts.slots) == (1, T * K)


@pytest.mark.parametrize("largest", [None, K, PROTECTED], ids=["exact", "S = K", "protected"])
def test_steps_that_are_left_alone(budgets: RowBudgets, largest: int | None) -> None:
    """Exact steps, and steps with a row that keeps its experts, reach the kernel as they are."""
    kernel = Kernel()
    if largest is None:
        budgets.exact()
    else:
        budgets.announce(np.array([LAYER_BUDGET] * (T - 1) + [largest], dtype=np.int32))
    run(FlatExperts(kernel.apply, E, "on", budgets), kernel.apply)
    assert kernel.slots == [T * K]


def test_a_rule_that_changes_nothing_is_left_alone(budgets: RowBudgets) -> None:
    """The baseline ``off`` is the engine as it is, whatever weights its router gives."""
    kernel = Kernel()
    flat = FlatExperts(kernel.apply, E, "on", budgets)
    flat.enabled = False
    run(flat, kernel.apply)
    assert kernel.slots == [T * K]


@pytest.mark.parametrize(("share", "flattened"), [(1.0, True), (0.3, False)], ids=["cheap", "dear"])
def test_costs_decide(
    budgets: RowBudgets, monkeypatch: pytest.MonkeyPatch, share: float, flattened: bool
) -> None:
    """By default pairs are taken up to the measured share of the slots."""
    monkeypatch.setattr(flat_experts, "costs_of", lambda *_, **__: Costs((share,) * len(ROWS)))
    kernel = Kernel()
    flat = FlatExperts(kernel.apply, E, "auto", budgets)
    run(flat, kernel.apply)
    assert (kernel.slots == [T * K]) is not flattened
    assert (flat.counts.steps, flat.counts.whole) == ((1, 0) if flattened else (0, 1))


def test_costs_are_measured_at_the_first_step_of_any_kind(budgets: RowBudgets) -> None:
    """A start-up step is exact, and measures; no request waits for that."""
    kernel = Kernel()
    flat = FlatExperts(kernel.apply, 1013, "auto", budgets)
    budgets.exact()
    run(flat, kernel.apply)
    assert len(kernel.slots) > 1
    kernel.slots.clear()
    run(flat, kernel.apply)
    assert kernel.slots == [T * K]


def test_the_engines_log_says_once_where_pairs_are_faster(
    budgets: RowBudgets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each kind of layer, in each engine, from one rank; the statistics have the same numbers."""
    shares = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    monkeypatch.setattr(flat_experts, "costs_of", lambda *_, **__: Costs(shares))
    engines = [FlatKernels(), FlatKernels(), FlatKernels(speaks=False)]
    with caplog.at_level("INFO", logger="vllm.sere"):
        for kernels in engines:
            for experts in (E, E, 2 * E):
                kernel = Kernel()
                run(FlatExperts(kernel.apply, experts, "auto", budgets, None, kernels), kernel.apply)
    form = f"{K} slots per row, hidden size {H} (Kernel, float32, weights float32 [0])"
    kinds = [f"{experts} experts, {form}" for experts in (E, 2 * E)]
    measured = (
        "0 % at 1 row, 25 % at 4 rows, 50 % at 8 rows, 75 % at 16 rows, 90 % at 32 rows, 100 % at 64 rows"
    )
    assert caplog.messages == [
        f"sere: flatten: in layers with {kind}, only the slots that carry weight are computed where they are "
        f"at most this share of all: {measured}"
        for kind in kinds
    ] * 2  # fmt: skip
    points = [list(point) for point in zip(ROWS, shares, strict=True)]
    assert [kernels.report()["break_even"] for kernels in engines] == [dict.fromkeys(kinds, points)] * 3


def test_kinds_that_differ_in_their_weights_or_dtype_alone_are_told_apart(
    budgets: RowBudgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the numbers that were measured for it."""
    shares = iter((0.25, 0.5, 0.75))
    monkeypatch.setattr(flat_experts, "costs_of", lambda *_, **__: Costs((next(shares),) * len(ROWS)))
    kernel, kernels = Kernel(), FlatKernels()
    weights = torch.empty(2, dtype=torch.int8)
    for dtype, w1 in ((torch.float32, None), (torch.bfloat16, None), (torch.float32, weights)):
        run(FlatExperts(kernel.apply, E, "auto", budgets, None, kernels), kernel.apply, dtype, w1)
    found = kernels.report()["break_even"]
    assert [points[0][1] for points in found.values()] == [0.25, 0.5, 0.75]
    assert [kind.partition("(")[2] for kind in found] == [
        "Kernel, float32, weights float32 [0])",
        "Kernel, bfloat16, weights float32 [0])",
        "Kernel, float32, weights int8 [2])",
    ]


@pytest.mark.parametrize(
    ("setting", "device", "kernel", "reason"),
    [
        ("off", "cpu", "CPUUnquantizedExperts", "flatten is 'off'"),
        ("on", "cuda", "TritonExperts", "the model does not run on a CPU"),
        ("on", "cpu", "zentorch", "the expert kernel zentorch is not known to take pairs"),
        ("on", "cpu", None, "the expert kernel in use is not known to take pairs"),
        ("auto", "cpu", "CPUUnquantizedExperts", None),
        ("on", "cpu", "CPUExpertsInt8", None),
    ],
)
def test_why_no_pairs(setting: str, device: str, kernel: str | None, reason: str | None) -> None:
    """One reason per engine, for its statistics."""
    assert why_no_pairs(setting, device, kernel) == reason


def unquantized(dtype: torch.dtype) -> Any:
    """The kernel of vLLM for weights that are not quantized, on random ones."""
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    generator = torch.Generator().manual_seed(0)
    w13 = cpu_prepack_moe_weight((torch.randn(E, 64, H, generator=generator) / 8).to(dtype), "vec")
    w2 = cpu_prepack_moe_weight((torch.randn(E, H, 32, generator=generator) / 6).to(dtype), "vec")

    def call(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        cpu_fused_moe(output, hidden, w13, w2, None, None, weights, ids, "silu", "vec", False)

    return call


def int8(_: torch.dtype) -> Any:
    """The kernel of vLLM for INT8 weights, on random ones."""
    from vllm._custom_ops import CPUQuantMethod, fused_experts_cpu

    needs_int8_kernel()
    generator = torch.Generator().manual_seed(0)
    quantized = [torch.randint(-100, 100, size, generator=generator) for size in ((E, 64, H), (E, H, 32))]
    w13, w2 = (torch.ops._C.convert_weight_packed(weight.to(torch.int8)) for weight in quantized)
    scales = [torch.rand(E, size, generator=generator) * 0.002 + 0.001 for size in (64, H)]

    def call(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        nothing = [None] * 7
        fused_experts_cpu(
            output, hidden, w13, w2, weights, ids, CPUQuantMethod.INT8_W8A8, *scales, *nothing, True
        )

    return call


@pytest.fixture
def _vllm() -> None:
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("_vllm")
@pytest.mark.parametrize(
    ("make", "dtype"),
    [(unquantized, torch.float32), (unquantized, torch.bfloat16), (int8, torch.bfloat16)],
    ids=["float32", "bfloat16", "int8"],
)
def test_kernels_give_the_output_of_all_slots(budgets: RowBudgets, make: Any, dtype: torch.dtype) -> None:
    """Up to the rounding of each pair, and of the sum, to the model's dtype."""
    call = make(dtype)
    flat = FlatExperts(call, E, "on", budgets)
    hidden, weights, ids = step(dtype)
    found = run(flat, call, dtype)
    assert flat.counts.steps == 1
    expected, size = torch.empty_like(hidden), torch.zeros(T, H)
    call(expected, hidden, weights, ids)
    for k in range(K):
        one = torch.empty_like(hidden)
        call(one, hidden, weights[:, k : k + 1].contiguous(), ids[:, k : k + 1].contiguous())
        size += one.float().abs()
    assert expected.isfinite().all()
    assert ((found.float() - expected.float()).abs() <= 2 * torch.finfo(dtype).eps * size).all()


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("_vllm")
@pytest.mark.parametrize(
    ("make", "dtype", "kept"),
    [
        (unquantized, torch.float32, 1),
        (unquantized, torch.bfloat16, 1),
        (int8, torch.bfloat16, 1),
        (int8, torch.bfloat16, 3),
    ],
    ids=["float32, one slot", "bfloat16, one slot", "int8, one slot", "int8, three slots"],
)
def test_where_the_bits_stay(budgets: RowBudgets, make: Any, dtype: torch.dtype, kept: int) -> None:
    """Without duplicate experts in a row: rows of one pair with both kernels, all rows with the INT8 one."""
    call = make(dtype)
    hidden, weights, _ = step(dtype)
    weights = weights + 0.5
    weights[:, kept:] = 0
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)]).int()
    expected, found = torch.empty_like(hidden), torch.empty_like(hidden)
    call(expected, hidden, weights, ids)
    flat = FlatExperts(call, E, "on", budgets)
    flat(call, torch.empty(0), found, hidden, weights, ids)
    assert flat.counts.pairs == kept * T
    assert torch.equal(found, expected)
