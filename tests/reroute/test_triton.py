"""The ``triton`` backend: the common suite in Triton's interpreter, and what its host code refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sere.errors import BackendUnavailable, InputError
from sere.reroute.backends.triton import Layer, launch, prepare
from sere.reroute.batch import USUAL_DTYPES, StepDtypes, TokenBatch
from tests.support.batches import INTERPRETED, assert_same_bits, batch, fuzzed, raw_layer, similarity_matrix
from tests.support.cuda_host import pretend_device

HERE = Path(__file__).parent
NO_TRITON = "Triton is not installed: pip install triton"
SUITE = (
    "test_backends.py", "test_gain.py", "test_operator.py", "test_prepare.py", "test_properties.py",
    "test_triton.py", "test_weights.py", "test_what_does_not_matter.py", "test_worked_example.py",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("triton") is None, reason=NO_TRITON)
@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's own")
@pytest.mark.parametrize("file", SUITE)
def test_common_suite_in_the_interpreter(file: str) -> None:
    """Each program, interpreted on the CPU, gives the reference's bits; in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-W",
        "default",
        "-k",
        "interpreted",
        str(HERE / file),
    ]
    # The interpreter takes seconds for what the other backends do in milliseconds.
    environment = {"MOST_EXAMPLES": "15"} | os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.usefixtures("shim_backend")
@pytest.mark.skipif(not INTERPRETED, reason="test_common_suite_in_the_interpreter runs this")
@pytest.mark.parametrize("seed", range(15), ids=lambda seed: f"interpreted-{seed}")
def test_fuzzed_cases(seed: int) -> None:
    """Layers of up to 1024 experts, rows of up to 32 slots, and steps of several programs."""
    assert_same_bits(fuzzed(seed), "interpreted")


def layer_of(E: int) -> Layer:
    return prepare(raw_layer(similarity_matrix(E, 1)), CPU)


def test_more_slots_than_a_program_takes() -> None:
    """Rows of 33 slots go to the torch backend, which gets the same layer."""
    ids, weights = batch(3, 33, 40, seed=1)
    routing = launch.run(TokenBatch(ids, weights), layer_of(40), None)
    torch_layer = launch.torch_ops.prepare(raw_layer(similarity_matrix(40, 1)), CPU)
    expected = launch.torch_ops.run(TokenBatch(ids, weights), torch_layer, None)
    assert torch.equal(routing.ids, expected.ids)
    assert not torch.equal(routing.ids, ids)


def test_a_capture_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that were never loaded are not loaded while a graph is captured: the error says what to do."""
    monkeypatch.setattr(launch, "_is_capturing", lambda _: True)
    monkeypatch.setattr(launch, "_ready", set())
    ids, weights = batch(3, 4, 8, seed=1)
    with pytest.raises(BackendUnavailable, match="route one step of these dtypes before the capture begins"):
        launch.run(TokenBatch(ids, weights), layer_of(8), None)
    assert not launch._ready


def test_a_step_that_triton_fails_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a kind is refused in one line with what to do; a later failure is what it is."""

    def fail(*_: object) -> None:
        raise ValueError("no\n  such type")

    ids, weights = batch(3, 4, 8, seed=1)
    step, layer = TokenBatch(ids.long(), weights.bfloat16()), layer_of(8)
    monkeypatch.setattr(launch, "_ready", set())
    monkeypatch.setattr(launch, "_launch", fail)
    text = (
        "cannot run steps with int64 ids and bfloat16 weights, 4 slots per row and 8 experts on cpu: "
        "ValueError: no such type; choose backend='torch'"
    )
    with pytest.raises(BackendUnavailable, match=text):
        launch.run(step, layer, None)
    monkeypatch.setattr(launch, "_launch", lambda *_: None)
    launch.run(step, layer, None)
    monkeypatch.setattr(launch, "_launch", fail)
    with pytest.raises(ValueError, match="such type"):
        launch.run(step, layer, None)


@pytest.mark.usefixtures("forgetful")
def test_each_kind_of_steps_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is tried once with each kind that it must run; the reason names the kind and the cause."""
    tried: list[tuple[str, torch.device]] = []

    def attempt(_: object, __: object, dtypes: StepDtypes, where: torch.device) -> None:
        tried.append((str(dtypes), where))
        if dtypes.weights is torch.bfloat16:
            raise BackendUnavailable("a long line") from ValueError("no\n  such type")

    pretend_device(monkeypatch)
    monkeypatch.setattr(launch, "try_step", attempt)
    narrow = StepDtypes(torch.int64, torch.bfloat16)
    for _ in range(2):
        assert launch.why_not() is None
        reason = launch.why_not(None, (*USUAL_DTYPES, narrow))
        assert reason == "with int64 ids and bfloat16 weights, ValueError: no such type"
    assert tried == [(str(one), torch.device("cuda", 3)) for one in (*USUAL_DTYPES, narrow)]


def test_num_tokens_elsewhere_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number on another device would be read once and hold at every replay."""
    monkeypatch.setattr(launch, "_is_capturing", lambda _: True)
    ids, weights = batch(3, 4, 8, seed=1)
    step = TokenBatch(ids, weights, None, torch.tensor(2, device="meta"))
    with pytest.raises(InputError, match="on cpu while a CUDA graph is captured, got one on meta"):
        launch.run(step, layer_of(8), None)


@pytest.mark.parametrize("K", [1, 2, 8, 10, 32])
@pytest.mark.parametrize("E", [1, 60, 128, 512, 1024])
def test_tiles_fit(K: int, E: int) -> None:
    """Powers of two that hold all slots and experts, and no tile of more than 2^13 pairs."""
    shape = launch.Shape.of(K, E)
    assert shape.KP >= K
    assert shape.EP >= E
    assert all(number & (number - 1) == 0 for number in shape[1:2] + shape[3:])
    assert shape.EP % shape.C == 0
    assert max(shape.B, shape.C) * shape.EP <= 2**13


def test_without_a_device() -> None:
    """The reason is one line that names PyTorch, before Triton is imported."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert launch.why_not() == "PyTorch sees no CUDA device"
