"""What a record says of the machine that made it."""

from __future__ import annotations

import pytest

from sere.provenance import describe_processor, instructions, machine


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
        ("avx2 avx512_vnni amx_tile amx_int8", ["avx2", "avx512_vnni", "amx_int8"]),
    ],
)
def test_instructions_that_change_times_are_named(flags: str, found: list[str]) -> None:
    """Whole words only: a processor without bfloat16 instructions is told from one with them."""
    assert instructions(flags) == found


def test_the_machine_is_described() -> None:
    """A record names the processor, its instructions, cores, threads and accelerator."""
    described = machine()
    assert list(described) == ["cpu", "cpu_model", "instructions", "cores", "threads", "gpu"]
    assert described["cpu"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "AMD EPYC"),
        ({"cpu_model": None, "instructions": ["avx2"]}, "AMD EPYC (avx2)"),
        ({"cpu_model": "family 26 model 2", "instructions": []}, "AMD EPYC family 26 model 2"),
    ],
    ids=["older records", "no numbers", "numbers"],
)
def test_a_processor_is_more_than_its_name(more: dict[str, object], text: str) -> None:
    """Records of processors of one name are told apart by family and model, and by instructions."""
    assert describe_processor({"cpu": "AMD EPYC"} | more) == text
