"""Which files become records, and what is said of those that do not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sere.errors import DataError
from sere.report.collect import collect
from sere.report.read import NEWEST, read_sources, source_of
from tests.support.records import divergences, evaluation, lm_eval, timing, tuning
from tests.support.tables import saved

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_records_lines_and_tables_are_told_apart(tmp_path: Path) -> None:
    """A file in JSON is one record, each JSON line is one, and a table is known by its name."""
    (tmp_path / "eval.json").write_text(json.dumps(evaluation(), indent=2))
    lines = [json.dumps(timing("off", 8, 1.0)), "", json.dumps(timing("sere", 8, 1.2))]
    (tmp_path / "bench.jsonl").write_text("\n".join(lines))
    sources = read_sources([tmp_path / "eval.json", tmp_path / "bench.jsonl", saved(tmp_path)])
    assert [(one.name, one.kind) for one in sources] == [
        ("eval.json", "sere-eval"),
        ("bench.jsonl, line 1", "sere-bench"),
        ("bench.jsonl, line 3", "sere-bench"),
        ("table.safetensors", "table"),
    ]


@pytest.mark.checkout
@pytest.mark.parametrize(
    ("name", "qualities", "timings"),
    [
        ("eval.json", 20, 0),
        ("eval-vllm.json", 50, 0),
        ("eval-prompts.json", 4, 0),
        ("demo.json", 20, 20),
        ("frontier-abacus.json", 23, 0),
        ("bench.jsonl", 0, 20),
        ("serve.jsonl", 0, 177),
        ("serve_online.jsonl", 0, 24),
    ],
)
def test_committed_records_of_all_formats_are_read(name: str, qualities: int, timings: int) -> None:
    """Also those with the names of earlier formats, each case of them."""
    found = collect(read_sources([RESULTS / name]))
    assert (len(found.qualities), len(found.timings)) == (qualities, timings)
    assert all(one.after <= one.before + 1e-9 for one in found.qualities)


@pytest.mark.checkout
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*")), ids=lambda path: path.name)
def test_every_committed_record_is_read_or_refused_by_name(path: Path) -> None:
    """A format that a report knows is read whole; of any other the file and the format are said."""
    text = path.read_text(encoding="utf-8")
    record = json.loads(text if path.suffix == ".json" else text.splitlines()[0])
    if str(record.get("format")).rpartition("-")[0] in NEWEST:
        found = collect(read_sources([path]))
        assert found.qualities or found.timings or found.sources[0].kind == "sere-tune"
        return
    said = f"^{re.escape(path.name)}.* got format {record.get('format')!r}; leave the file out"
    with pytest.raises(DataError, match=said):
        read_sources([path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected records in JSON, got an empty file"),
        ('{"format": "sere-eval-2",\n "model"', "line 2: Expecting ':' delimiter; was the file cut off?"),
        ('{"format": "sere-soak-serve-1"}', "got format 'sere-soak-serve-1'; leave the file out"),
        ("[1]", "expected a record, a JSON object, got list"),
        ('{"format": "sere-eval-99"}', "expected format sere-eval-2 or older, got sere-eval-99"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, text: str, said: str) -> None:
    """With what was expected, what came, and what to do."""
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_sources([path])
    assert "one.json" in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    """A binary file, too."""
    with pytest.raises(DataError, match=r"none\.json: expected a file with records, but it does not exist"):
        read_sources([tmp_path / "none.json"])
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="got a file that is not text"):
        read_sources([tmp_path / "bytes.bin"])


@pytest.mark.parametrize("make", [evaluation, divergences, tuning, lm_eval, lambda: timing("sere", 8, 1.2)])
def test_a_record_without_a_part_is_refused_by_name(make: object) -> None:
    """Whichever part of the top level a report needs: no half of a page, and no traceback."""
    unused = {"format", "table", "speedup", "experts", "layers"}
    for name in make().keys() - unused:  # type: ignore[operator]
        record = {key: value for key, value in make().items() if key != name}  # type: ignore[operator]
        with pytest.raises(DataError, match=f"one.json: expected a complete record .* one with no '{name}'"):
            collect([source_of(record, "one.json")])


def test_every_format_that_commands_write_is_known() -> None:
    """A format with a new version is one that a report must learn."""
    source = Path(collect.__code__.co_filename).parents[1]
    written = {
        found
        for folder in ("eval", "tune", "bench")
        for path in (source / folder).rglob("*.py")
        for found in re.findall(
            r'"(sere-(?:eval|lm-eval|tune|demo|bench)[a-z-]*)-(\d+)"', path.read_text("utf-8")
        )
    }
    assert written == {(kind, str(version)) for kind, version in NEWEST.items()}
