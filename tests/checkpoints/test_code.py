"""Code that comes with a checkpoint: not run, not asked for, unless it is asked to be run."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import sere
from sere.calibrate import calibrate
from sere.checkpoints import load_config, load_model, load_tokenizer
from sere.cli import main
from sere.cli.parser import COMMANDS
from sere.errors import UnsupportedModel
from tests.support.damage import change_json
from tests.support.foreign import model_with_code, tokenizer_with_code
from tests.support.terminal import Screen

TEXTS = ["The quick brown fox jumps over the lazy dog."] * 8


@pytest.fixture(autouse=True)
def _code_goes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep Transformers' copies of the code in the test's folder, and out of other tests."""
    from transformers import dynamic_module_utils

    place = str(tmp_path / "modules")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


TEXT = "--texts TEXTS --max-tokens 64 --seq-len 16 --out OUT"
# Every command that loads a model or its config.
LINES = {
    "calibrate": f"calibrate MODEL {TEXT}",
    "calibrate layer by layer": f"calibrate MODEL {TEXT} --low-memory",
    "generate": "generate MODEL --prompt a --max-new-tokens 2",
    "bench": "bench MODEL --table TABLE --batch-size 2 --steps 2 --rounds 1 --setting topk:select_top_k=1",
    "table verify": "table verify TABLE --model MODEL",
    "table import": "table import TABLE --model MODEL --out OUT",
    "doctor": "doctor --no-measure --model MODEL",
}


def words(line: str, model: Path) -> list[str]:
    """The words of one of the commands, for a model's folder."""
    folder = model.parent
    (folder / "texts.txt").write_text("some words to calibrate on\n" * 40)
    names = {"MODEL": model, "TABLE": folder / "table.safetensors", "TEXTS": folder / "texts.txt"}
    names["OUT"] = folder / "out.safetensors"
    return [str(names.get(word, word)) for word in line.split()]


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_every_command_refuses_foreign_code_and_asks_nothing(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model type that only the folder's code knows: one line that names the files and the flag."""
    mark = tmp_path / "ran"
    path = model_with_code(tmp_path, mark)
    assert main(words(line, path)) in (1, 2)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "is Python code (modeling_mill.py), which is not run" in shown
    assert "give --trust-remote-code" in shown
    assert not mark.exists()


def test_no_command_asks_on_a_terminal(tmp_path: Path) -> None:
    """With a terminal on stdin and a yes waiting in it, the code is not run either, and nothing asks."""
    mark = tmp_path / "ran"
    path = model_with_code(tmp_path, mark)
    lines = [words(line, path) for line in LINES.values()]
    script = f"from sere.cli import main\nprint([main(command) for command in {lines!r}])"
    with closing(Screen()) as screen:
        screen.type("y\n" * 10)
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=screen.stream, capture_output=True, text=True, check=True
        )
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 2, 2, 2, 1]"
    assert "wish to run" not in done.stdout + done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_with_the_flag_every_command_runs_the_code(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--trust-remote-code`` is taken by all. No table fits this model, and none is there to import."""
    mark = tmp_path / "ran"
    path = model_with_code(tmp_path, mark)
    code = main([*words(line, path), "--trust-remote-code"])
    assert "Python code" not in capsys.readouterr().err
    assert (code == 0) == line.startswith(("calibrate", "generate", "doctor"))


def test_a_model_of_foreign_code_works(tmp_path: Path) -> None:
    """With the flag, Python loads and calibrates it."""
    mark = tmp_path / "ran"
    path = model_with_code(tmp_path, mark)
    model = load_model(path, trust_remote_code=True)
    assert type(model).__name__ == "MillForCausalLM"
    table = calibrate(path, None, TEXTS, max_tokens=64, seq_len=16, progress=False, trust_remote_code=True)
    assert set(table.layers) == {0, 1}
    assert mark.exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_transformers_own_class_comes_before_foreign_code(tmp_path: Path, trusted: bool) -> None:
    """Where Transformers has the model type, the code is not needed, not run and not asked for."""
    mark = tmp_path / "ran"
    path = model_with_code(tmp_path, mark, model_type="qwen3_moe")
    model = load_model(path, trust_remote_code=trusted)
    assert type(model).__module__ == "transformers.models.qwen3_moe.modeling_qwen3_moe"
    load_tokenizer(path, trust_remote_code=trusted)
    assert not mark.exists()


def test_a_tokenizer_of_foreign_code_is_refused_or_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the flag the error names the code; with it the tokenizer is the code's."""
    mark = tmp_path / "ran"
    path = tokenizer_with_code(tmp_path, mark)
    with pytest.raises(UnsupportedModel, match=r"its tokenizer is Python code \(tokenization_mill\.py\)"):
        load_tokenizer(path)
    assert main(["generate", str(path), "--prompt", "a"]) == 2
    assert "give --trust-remote-code" in capsys.readouterr().err
    assert not mark.exists()
    assert type(load_tokenizer(path, trust_remote_code=True)).__name__ == "MillTokenizer"
    assert mark.exists()


def test_models_are_loaded_in_one_room_and_foreign_code_is_decided_on_at_every_call() -> None:
    """No other module of the package calls from_pretrained; each call there says whether code may run."""
    root = Path(sere.__file__).parent
    names = ("from_pretrained", "snapshot_download")
    calls = [
        (path.relative_to(root).parts[0], node)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in names
    ]
    assert {room for room, _ in calls} == {"checkpoints"}
    loading = [call for _, call in calls if getattr(call.func, "attr", "") == "from_pretrained"]
    assert len(loading) == 3
    assert all("trust_remote_code" in ast.unparse(call) for call in loading)


@pytest.mark.parametrize(
    "command",
    sorted(
        {*COMMANDS, "bench run", "bench serve", "table verify", "table import"}
        - {"bench", "demo", "list", "report", "table", "top"}
    ),
)
def test_every_command_that_takes_a_model_takes_the_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its help says what is run; the demonstration has its own model, and needs none."""
    assert main([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--trust-remote-code run Python code that comes with the checkpoint" in shown


def test_code_in_another_repository_is_named_with_it(tmp_path: Path) -> None:
    """The file that would run may not be in the folder."""
    path = model_with_code(tmp_path, tmp_path / "ran")
    change_json(path / "config.json", auto_map={"AutoConfig": "mill/code--configuration_mill.MillConfig"})
    with pytest.raises(UnsupportedModel, match=r"is Python code \(configuration_mill\.py of mill/code\)"):
        load_config(path)


def test_code_without_a_class_that_generates_is_refused(tmp_path: Path) -> None:
    """Trusted code whose auto_map has no class for text gives an error with what was looked for."""
    path = model_with_code(tmp_path, tmp_path / "ran")
    change_json(path / "config.json", auto_map={"AutoConfig": "modeling_mill.MillConfig"})
    assert load_config(path, trust_remote_code=True).model_type == "mill_moe"
    with pytest.raises(
        UnsupportedModel, match="its code has no class that generates text; expected one of Auto"
    ):
        load_model(path, trust_remote_code=True)
