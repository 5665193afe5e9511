"""What a record says of the machine that made it."""

from __future__ import annotations

import pytest

from sere.provenance import instructions, machine


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (
            "fpu sse4_2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile",
            ["avx2", "avx512f", "avx512_bf16", "amx_bf16"],
        ),
        ("fpu sse4_2 avx2", ["avx2"]),
        ("fp asimd sve bf16 i8mm", ["asimd", "sve", "bf16"]),
        ("avx avx2_like", []),
    ],
)
def test_instructions_that_change_times_are_named(flags: str, found: list[str]) -> None:
    """Whole words only: a processor without bfloat16 instructions is told from one with them."""
    assert instructions(flags) == found


def test_the_machine_is_described() -> None:
    """A record names the processor, its instructions, cores, threads and accelerator."""
    described = machine()
    assert list(described) == ["cpu", "instructions", "cores", "threads", "gpu"]
    assert described["cpu"]
