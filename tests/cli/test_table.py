"""``sere table`` on tables alone: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sere.cli.parser import build_parser
from sere.errors import ConfigError, TableError
from sere.similarity import LayerSimilarity
from tests.support.tables import identity, matrix, table


def sere(*words: object) -> int:
    """Run ``sere table ...`` without the frame that turns errors into exit code 2."""
    args = build_parser().parse_args(["table", *map(str, words)])
    return int(args.run(args))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a saved table."""
    table().save(tmp_path / "table.safetensors")
    return tmp_path / "table.safetensors"


def test_show_names_model_metric_data_and_layers(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: every fact of the header and a row for each layer."""
    assert sere("show", path, "--threshold", "1.1") == 0
    text = capsys.readouterr().out
    assert f"model:       tiny (E=5, K=2, digest {identity().digest[:12]})" in text
    assert "metric:      cka (bandwidth=1.0, kernel=rbf, window=128)" in text
    assert "tokens:      51,200 (digest cdcdcdcdcdcd, seed 0)" in text
    assert "made by:     torch 2.9; commit 000000000000" in text
    assert table().fingerprint in text
    assert text.splitlines()[-1].split()[:2] == ["3", "5"]
    assert text.splitlines()[-1].split()[-2:] == ["5", "0"], "all critical, none of them not known"


def test_show_as_json_is_one_value(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Critical experts are listed by layer."""
    assert sere("show", path, "--json", "--threshold", "0.8") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["fingerprint"] == table().fingerprint
    assert [layer["critical"] for layer in value["layers"]] == [
        list(table().critical_experts(index, 0.8)) for index in (1, 3)
    ]


@pytest.mark.parametrize("threshold", ["nan", "inf", "-0.1", "much"])
def test_show_refuses_a_threshold_that_is_none(
    path: Path, threshold: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be a similarity is wrong use, in one line, with --json as without."""
    with pytest.raises(SystemExit) as caught:
        sere("show", path, "--json", f"--threshold={threshold}")
    assert caught.value.code == 2
    expected = f"argument --threshold: expected a number of at least 0 (a similarity), got '{threshold}'"
    assert expected in capsys.readouterr().err


def test_verify_fails_with_1_and_says_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good table passes, a truncated one fails its check, a missing one is wrong use."""
    assert sere("verify", path) == 0
    path.write_bytes(path.read_bytes()[:-1])
    assert sere("verify", path, "--json") == 1
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not value["passed"]
    assert "a complete safetensors file" in value["checks"][0]["detail"]
    with pytest.raises(TableError, match="does not exist"):
        sere("verify", path.with_name("no"))


def test_diff_fails_with_1_where_tables_differ(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The differences are on stdout, warnings on stderr."""
    other = path.with_name("other.safetensors")
    table(metric="cosine", layers={i: LayerSimilarity(matrix(i + 5)) for i in (1, 3)}).save(other)
    assert sere("diff", path, path) == 0
    assert "equal" in capsys.readouterr().out
    assert sere("diff", path, other) == 1
    shown = capsys.readouterr()
    assert shown.err == "warning: different metrics: cka and cosine\n"
    assert "changed best expert" in shown.out


def test_plot_writes_a_picture_beside_the_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PNG by default, another format by its ending, and no unknown one."""
    assert sere("plot", path) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sere("plot", path, "--out", path.with_name("p.svg")) == 0
    assert "<svg" in path.with_name("p.svg").read_text()
    with pytest.raises(ConfigError, match=r"--out: expected a picture file \(.png, .svg, .pdf\)"):
        sere("plot", path, "--out", path.with_name("p.txt"))


def test_layers_of_different_sizes_are_shown_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers of 6 and 4 experts: a row with each layer's own number, and both in the header."""
    layers = {1: LayerSimilarity(matrix(1, E=6)), 3: LayerSimilarity(matrix(3, E=4))}
    made = table(layers=layers, identity=identity(experts={1: 6, 3: 4}))
    made.save(tmp_path / "table.safetensors")
    assert sere("show", tmp_path / "table.safetensors") == 0
    shown = capsys.readouterr().out
    assert "tiny (E=4 to 6, K=2, digest " in shown
    assert [line.split()[:2] for line in shown.splitlines()[-2:]] == [["1", "6"], ["3", "4"]]
    assert sere("plot", tmp_path / "table.safetensors") == 0
    assert sere("diff", tmp_path / "table.safetensors", tmp_path / "table.safetensors") == 0
