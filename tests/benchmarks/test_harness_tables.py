"""lm-eval's own output for a record: what is run, and what is read of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_tables import read_run, words_of

PRINTED = """vllm ({'pretrained': 'MODEL'}), gen_kwargs: ({}), limit: None
|    Tasks    |Version|Filter|n-shot|  Metric   |   |Value |   |Stderr|
|-------------|------:|------|-----:|-----------|---|-----:|---|-----:|
|sere_addition|      1|answer|     0|exact_match|↑  |0.9500|±  |0.0500|

"""
RESULTS = {
    "results": {
        "sere_addition": {
            "alias": "sere_addition",
            "exact_match,answer": 0.95,
            "exact_match_stderr,answer": 0.05,
        },
        "sere_generate": {"alias": "sere_generate"},
    },
    "config": {"model": "vllm"},
}


def test_what_lm_eval_printed_and_wrote() -> None:
    """The table without other lines, values by task, and the last line of sere that tells of re-routing."""
    log = "sere: 0 steps re-routed\nsere: 5 steps re-routed, a\n... sere: 12 steps re-routed, b\n"
    found = read_run(RESULTS, PRINTED, log)
    assert found["table"] == PRINTED.splitlines()[1:4]
    assert found["values"] == {"sere_addition": {"value": 0.95, "stderr": 0.05}}
    assert found["log"] == "sere: 12 steps re-routed, b"
    assert found["experts"] is None


def test_what_sere_hf_says() -> None:
    """Its experts, without those of each layer."""
    said = {"requests": {"generate_until": {"experts": {"distinct_after": 3.5, "layers": [1, 2]}}}}
    found = read_run(RESULTS | {"config": {"sere": said}}, PRINTED, "")
    assert found["experts"] == {"distinct_after": 3.5}
    assert found["log"] is None


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_runs_differ_in_the_setting_alone(engine: str, tmp_path: Path) -> None:
    """Off has the same arguments without settings of sere."""
    table = tmp_path / "similarity.sere"
    lines = [words_of(engine, one, tmp_path, table, tmp_path / "out") for one in ("off", "sere")]
    off, default = (json.loads(line[line.index("--model_args") + 1]) for line in lines)
    if engine == "transformers":
        assert off.pop("sere") == "off"
        assert default.pop("table") == str(table)
    else:
        assert default.pop("additional_config") == {"sere": {"table": str(table)}}
    assert off == default
    (first, second) = ([word for word in line if not word.startswith("{")] for line in lines)
    assert first == second
