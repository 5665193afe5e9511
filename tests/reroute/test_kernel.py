"""What the kernel's own source does beyond the common suite, run on the CPU by the shim."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sere.reroute import COUNTERS, constants
from sere.reroute.backends import registry
from sere.reroute.backends.cuda import launch as launching
from sere.reroute.backends.cuda import layer
from sere.reroute.backends.cuda.launch import SOURCE, geometry
from tests.support.batches import Case, assert_same_bits, batch, fuzzed, similarity_matrix
from tests.support.calls import cases
from tests.support.shim import backend as shim
from tests.support.shim.build import COMPILER, NO_COMPILER, build, no_sanitizer

pytestmark = [
    pytest.mark.usefixtures("shim_backend"),
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
]
needs_sanitizer = pytest.mark.skipif(no_sanitizer() is not None, reason=str(no_sanitizer()))
RACE = ("-O1", "-fsanitize=thread", "-pthread")
MEMORY = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@given(case=cases(dtypes=WEIGHT_DTYPES))
@settings(max_examples=200)
def test_the_reference_s_bits(case: Case) -> None:
    """Not only ids: summed and scaled weights, too, have the reference's very bits in every dtype."""
    assert_same_bits(case)


@given(
    case=cases(),
    blocks=st.integers(1, 3),
    threads=st.sampled_from([32, 64, 96, 256]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_any_geometry_and_any_order(case: Case, blocks: int, threads: int, seed: int) -> None:
    """However many blocks and threads there are, and whoever goes first, the bits are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shim, "launch", partial(shim.launch, blocks=blocks, threads=threads, seed=seed))
        assert_same_bits(case)


@pytest.mark.parametrize("seed", range(0, 1000, 40))
def test_fuzzed_cases(seed: int) -> None:
    """Larger calls than hypothesis draws, up to 256 rows and 1024 experts."""
    assert_same_bits(fuzzed(seed))


EDGES = [
    pytest.param(1, 1, 1, {}, id="one expert"),
    pytest.param(5, 16, 31, {"targets": "active"}, id="K=16, E just below a word"),
    pytest.param(5, 17, 33, {"merge": "distinct"}, id="K=17: a row takes a whole warp"),
    pytest.param(3, 32, 40, {"merge": "distinct", "active_experts": 36}, id="K=32: the most slots"),
    pytest.param(
        2, 16, 64, {"merge": "distinct", "row_budgets": torch.tensor([1, 16])}, id="15 slots to fill"
    ),
    pytest.param(3, 4, 1024, {"merge": "distinct"}, id="E=1024: the most experts"),
    pytest.param(1100, 2, 8, {"merge": "same"}, id="more rows than one block has lanes for"),
    pytest.param(6, 4, 16, {"num_tokens": 0}, id="N=0"),
    *(pytest.param(1100, 2, 8, {"num_tokens": N}, id=f"N={N} of 1100") for N in (1, 127, 128, 129, 600)),
    pytest.param(6, 4, 16, {"row_budgets": torch.full((6,), -1)}, id="padding rows only"),
    pytest.param(6, 4, 16, {"row_budgets": torch.zeros(6, dtype=torch.int64)}, id="P empty: no budgets"),
    pytest.param(6, 4, 16, {"row_budgets": torch.full((6,), 2**40)}, id="a budget beyond int32"),
    pytest.param(6, 4, 16, {"active_experts": 10**6}, id="M above all"),
    pytest.param(6, 4, 16, {"select_top_k": 2**31 - 1}, id="the largest S"),
    pytest.param(300, 2, 64, {"active_experts": ((1, 4), (256, 40), (300, 64))}, id="more rows than limits"),
    pytest.param(24, 8, 1024, {"active_experts": 150}, id="E=1024, P filled up"),
    pytest.param(
        64, 8, 128, {"select_top_k": 3, "active_experts": 24, "cap": True}, id="kept slots beyond M"
    ),
    pytest.param(
        6,
        4,
        16,
        {"row_budgets": torch.tensor([-2, 4, -1, -3, 0, 1]), "active_experts": ((1, 1), (3, 9))},
        id="budgets of every kind, int64",
    ),
    pytest.param(6, 4, 60, {"keep": tuple(range(0, 60, 2)), "threshold": 0.9}, id="half of E is kept"),
    pytest.param(64, 8, 300, {"threshold": 0.97, "targets": "active"}, id="targets far down the lists"),
]


@pytest.mark.parametrize(("T", "K", "E", "options"), EDGES)
def test_edges(T: int, K: int, E: int, options: dict[str, Any]) -> None:
    """The least, the most and the degenerate."""
    ids, weights = batch(T, K, E, seed=T * K + E)
    assert_same_bits(Case(ids, weights, similarity_matrix(E, E), {"active_experts": 0} | options))


@pytest.mark.parametrize("E", [31, 33, 100])
def test_a_target_at_any_place(E: int) -> None:
    """Wherever in its list of neighbors an expert finds the first primary one, that one is taken."""
    similarity = torch.linspace(0.9, 0.1, E).expand(E, E).clone().fill_diagonal_(1.0)
    for nearest in range(E - 1):
        ids = torch.tensor([[nearest, E - 1], [min(nearest + 1, E - 2), E - 1]])
        case = Case(ids, torch.tensor([[0.9, 0.1], [0.9, 0.1]]), similarity, {"active_experts": 0})
        assert assert_same_bits(case).ids[:, 1].tolist() == [nearest, nearest]


def test_equal_masses() -> None:
    """Of experts with equal mass the lowest ids join P: as many as M asks for, no more."""
    ids = torch.tensor([[9, 7, 5, 3, 1], [8, 6, 4, 2, 0]])
    weights = torch.tensor([[0.5, 0.125, 0.125, 0.125, 0.125]] * 2)
    options = {"active_experts": 5}
    routing = assert_same_bits(Case(ids, weights, similarity_matrix(10, 1), options))
    assert set(routing.ids.flatten().tolist()) == {9, 8, 0, 1, 2}


def test_nearly_equal_masses() -> None:
    """Experts whose masses agree in more digits than their keys hold join P by mass, not by id."""
    ids = torch.arange(40).flip(0).reshape(4, 10)
    weights = 0.125 * (1 + torch.arange(40).flip(0) * 2.0**-20).reshape(4, 10)
    options = {"select_top_k": 1, "active_experts": 12, "row_budgets": [0, 0, 0, 0]}
    routing = assert_same_bits(Case(ids, weights, similarity_matrix(40, 1), options))
    assert set(routing.ids.flatten().tolist()) == set(range(28, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_at_their_bound(dtype: torch.dtype) -> None:
    """From 2 on all weights have one mass, so the lowest ids join; below they have less."""
    bound = torch.tensor(2.0, dtype=dtype)
    below = torch.nextafter(bound, bound - 1) if dtype == torch.float32 else bound - 1e-9
    weights = torch.stack([below, bound, 2 * bound, torch.tensor(torch.inf)])
    options = {"active_experts": 2, "row_budgets": [0]}
    case = Case(torch.arange(4)[None], weights.to(dtype)[None], similarity_matrix(4, 1), options)
    assert set(assert_same_bits(case).ids.flatten().tolist()) == {1, 2}


def test_targets_at_the_very_end() -> None:
    """A target that is the last of 500 neighbors is found: the search goes on past the nearest 32."""
    E = 501
    similarity = torch.linspace(0.9, 0.1, E).expand(E, E).clone().fill_diagonal_(1.0)
    ids = torch.tensor([[E - 1, 0], [E - 1, 7]])
    case = Case(ids, torch.tensor([[0.9, 0.1], [0.9, 0.1]]), similarity, {"active_experts": 0})
    assert assert_same_bits(case).ids.tolist() == [[E - 1, E - 1]] * 2


def test_wide_ids_pass_through() -> None:
    """An int64 id that is no int32 is outside [0, E), not what is left of it in 32 bits."""
    ids = torch.tensor([[2**32 + 1, 0], [1, -(2**40)]])
    case = Case(ids, torch.tensor([[0.9, 0.1], [0.5, 0.5]]), similarity_matrix(4, 1), {"active_experts": 0})
    routing = assert_same_bits(case)
    assert routing.ids[0, 0] == 2**32 + 1
    assert routing.ids[1, 1] == -(2**40)


@pytest.mark.parametrize("factor", [1.0 + 2**-9, 0.3337, 2**-14])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_weight(dtype: torch.dtype, factor: float) -> None:
    """Each 16-bit number, subnormal and infinite ones too, is read exactly; products round as PyTorch's."""
    weights = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    weights = weights[~weights.isnan()]
    weights = torch.cat([weights, weights[:2]]).reshape(-1, 4)
    ids = torch.arange(4, dtype=torch.int32).expand(len(weights), 4)
    scale = torch.full((4, 4), factor)
    options = {"active_experts": 0, "scale": scale, "row_budgets": torch.arange(len(weights)) % 2}
    case = Case(ids, weights, similarity_matrix(4, 2), options)
    expected, _ = case.run("torch")
    actual, _ = case.run("shim")
    assert torch.equal(actual.weights.view(torch.int16), expected.weights.view(torch.int16))


def test_more_slots_than_the_kernel_takes(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of 33 slots go to the torch backend, with the same result and one log line that says why."""
    registry.warn_once.forget()
    ids, weights = batch(3, 33, 40, seed=1)
    case = Case(ids, weights, similarity_matrix(40, 1))
    with caplog.at_level(logging.WARNING, "sere"):
        for _ in range(2):
            assert_same_bits(case)
    (record,) = caplog.records
    assert record.message.endswith(
        "instead of cuda: the kernel takes at most 32 slots per row, these rows have 33"
    )


@pytest.mark.parametrize("T", [1, 2, 16, 64, 256, 1024, 10**5])
@pytest.mark.parametrize("K", [1, 2, 6, 8, 10, 32])
@pytest.mark.parametrize("E", [1, 60, 128, 1024])
def test_geometry_fits_a_block(T: int, K: int, E: int) -> None:
    """At most 32 blocks of 64 to 1024 threads in whole warps; one thread for each expert and limit."""
    blocks, threads = geometry(T, K, E)
    assert 1 <= blocks <= 32
    assert 64 <= threads <= 1024
    assert threads % 32 == 0
    assert threads >= E
    assert threads > min(T, constants.LIMIT_ROWS)


def test_a_small_batch_takes_the_smallest_block() -> None:
    """One row needs no more than the fewest threads."""
    assert geometry(1, 8, 16) == (1, 64)


def numbers_of_the_source() -> dict[str, float]:
    """Every named constant of the kernel's source."""
    found: dict[str, float] = {}
    for header in SOURCE.parent.glob("*.cuh"):
        text = header.read_text()
        for line in re.findall(r"^constexpr \w+ (.+?);", text, re.MULTILINE):
            found |= {name: float(value) for name, value in re.findall(r"(\w+) = (-?[\d.]+)", line)}
        for body in re.findall(r"^enum \w+ \{(.+?)\};", text, re.MULTILINE):
            for position, entry in enumerate(body.split(",")):
                name, _, value = entry.partition("=")
                found[name.strip()] = float(value or position)
    return found


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (constants, ["MERGE_NONE", "MERGE_SAME", "MERGE_DISTINCT", "MERGE_SENTINEL"]),
        (constants, ["LAYER_BUDGET", "PADDING_BUDGET", "LIMIT_ROWS", "MASS_UNITS", "MASS_BOUND"]),
        (constants, ["LIMITS", "GAIN_UNITS"]),
        (launching, ["MOST_EXPERTS", "MOST_THREADS"]),
        (launching, ["ACTIVE_TARGETS", "WIDE_BUDGETS", "WIDE_NUM_TOKENS", "CAP"]),
        (layer, ["WARP", "GROUP"]),
    ],
    ids=["merge modes", "budgets and masses", "least gain", "limits", "flags", "lists"],
)
def test_numbers_shared_with_the_source(module: ModuleType, names: list[str]) -> None:
    """What has a name in Python and in the source has one value."""
    source = numbers_of_the_source()
    assert {name: getattr(module, name) for name in names} == {name: source[name] for name in names}


def test_counters_are_in_the_source_s_order() -> None:
    """Each counter has the position that the source gives it."""
    source = numbers_of_the_source()
    assert [source[name.upper()] for name in COUNTERS] == [*range(len(COUNTERS))]
    assert source["COUNTS"] == len(COUNTERS)


def test_entries_are_those_of_the_source() -> None:
    """Each id and weight type has its entry, and there is no other."""
    entries = re.findall(r"^SERE_ENTRY\((\w+),", SOURCE.read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(launching.entries())


@needs_sanitizer
@pytest.mark.parametrize(
    "sanitizer",
    [pytest.param(RACE, id="races"), pytest.param(MEMORY, id="addresses and undefined behavior")],
)
def test_sanitizers_find_nothing(sanitizer: tuple[str, ...]) -> None:
    """On real threads g++'s sanitizers see nothing wrong, and every geometry gives one result."""
    run = subprocess.run([str(build("race.cpp", *sanitizer))], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "24 runs agree\n"


@needs_sanitizer
def test_a_missing_barrier_is_found(tmp_path: Path) -> None:
    """Without the barrier after the vote ThreadSanitizer reports a race: the test above can fail."""
    kernel = mutated(tmp_path, "first, N);\n    __syncthreads();", "first, N);")
    run = subprocess.run(
        [str(build("race.cpp", *RACE, kernel=kernel))], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "data race" in run.stderr


def test_a_barrier_that_some_miss_is_found(tmp_path: Path) -> None:
    """The shim refuses a barrier that some threads of a block never reach, which on a device may hang."""
    changed = "first, N);\n    if (thread.lane != 3) __syncthreads();"
    kernel = mutated(tmp_path, "first, N);\n    __syncthreads();", changed)
    library = build("library.cpp", "-O0", "-shared", "-fPIC", kernel=kernel)
    ids, weights = batch(4, 4, 16, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shim, "_library", lambda: shim.open_library(library))
        with pytest.raises(AssertionError, match=r"meet in different operations|wait for others"):
            Case(ids, weights, similarity_matrix(16, 1)).run("shim")


def mutated(folder: Path, old: str, new: str) -> Path:
    """Copy the kernel's source with one change."""
    kernel = folder / "kernel"
    shutil.copytree(SOURCE.parent, kernel)
    text = (kernel / "kernel.cuh").read_text()
    assert text.count(old) == 1
    (kernel / "kernel.cuh").write_text(text.replace(old, new))
    return kernel
