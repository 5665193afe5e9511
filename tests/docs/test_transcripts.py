"""What writes the page of transcripts: its commands, names for paths, what is kept, what is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from operator import add, mod, mul, sub
from pathlib import Path
from typing import Any

import pytest

from sere.bundled import model_path
from sere.eval.tasks import ANSWER_MARK

pytestmark = pytest.mark.checkout

MODELS = ("bundled", "olmoe")


@pytest.fixture
def transcripts(build: Any) -> Any:
    return build("transcripts")


def plain(line: str) -> str:
    """A command without the line breaks that a shell does not see."""
    return " ".join(line.replace("\\\n", " ").split())


def test_each_kind_of_command_is_among_them(transcripts: Any) -> None:
    """All ways to calibrate, tuning, lm-eval on both engines, tables, a server and what it counts."""
    lines = [step.line for step in transcripts.steps("olmoe")]
    wanted = (
        "sere doctor", "sere calibrate", "sere calibrate .* --texts", "sere calibrate .* --engine vllm",
        ".* --engine-option", "sere tune", "sere eval", "sere lm-eval", "sere lm-eval .* --phases decode",
        "sere lm-eval .* --engine vllm", "sere table show", "sere table push", "sere table pull",
        ".*python -m vllm.*metrics_port", "curl .*/completions", "curl .*/metrics", "curl .*/sere/stats",
    )  # fmt: skip
    assert [one for one in wanted if not any(re.match(f"{one}\\b", line, re.S) for line in lines)] == []


def test_paths_have_names(transcripts: Any) -> None:
    """The longest one counts, and only as a whole name; a path below keeps what is below."""
    names = {"/a": "ROOT", "/a/b": "FOLDER", "http://h:1": "HUB"}
    text = "/a/b/c.sere '/a/b' \"/a\" file:///a/d http://h:1/x; wrote /a/b. End"
    assert transcripts.by_names(text, names) == (
        "FOLDER/c.sere 'FOLDER' \"ROOT\" file://ROOT/d HUB/x; wrote FOLDER. End"
    )


def test_other_paths_stay(transcripts: Any) -> None:
    """Longer names, paths that only end like one, and a name within one that was put there."""
    names = {"/tmp": "TEMPORARY", "/home/tmp": "HOME", "http://h:1": "HUB"}
    text = "/tmpfile /var/tmp /tmp-1 /tmp.d ./tmp http://h:12 x/tmp"
    assert transcripts.by_names(text, names) == text
    assert transcripts.by_names("/home/tmp/tmp", names) == "HOME/tmp"


@pytest.mark.parametrize("home", ["/", "", "."])
def test_a_root_has_no_name(transcripts: Any, home: str) -> None:
    """Where a user's home is the root, as in containers, the page is not full of it."""
    assert transcripts.by_names("a/b /c 1 / 2.", {home: "HOME"}) == "a/b /c 1 / 2."


def test_output_is_what_the_terminal_shows(transcripts: Any) -> None:
    """By names before lines break; colors within a path do not hide it, and bars are in their last state."""
    written = "10 %|#   |\r100 %|###|\r\n\x1b[1m/a/\x1b[0mb/c\r\n" + "/a/b " * 40 + "\r\n"
    first, second, *rest = transcripts.shown(written, {"/a/b": "FOLDER"}).splitlines()
    assert (first, second) == ("100 %|###|", "FOLDER/c")
    assert "".join(rest) == "FOLDER " * 39 + "FOLDER"
    assert len(rest[0]) == transcripts.COLUMNS


def test_what_is_kept_belongs_to_a_commit_and_a_command(transcripts: Any, tmp_path: Path) -> None:
    """Another line is another file, with a name that every file system takes, whatever the line holds."""
    head = "0123456789abcdef" * 2
    folders = [tmp_path / transcripts.checked(one, True, changed=False) for one in (head, head[::-1])]
    lines = ("sere doctor a/b", "sere doctor a-b", "curl '" + "x" * 1000 + "'")
    kept = {transcripts.kept_at(folder, line) for folder in folders for line in lines}
    assert len(kept) == 6
    assert all(re.fullmatch(r"[0-9a-f]+\.txt", path.name) for path in kept)
    assert all("0123456789ab" in str(transcripts.kept_at(folders[0], line)) for line in lines)


def test_a_tree_with_changes_is_refused(transcripts: Any) -> None:
    """Unless it is asked for, and then the page says so; without git there is no commit to name."""
    head = "a" * 40
    assert transcripts.checked(head, True, changed=False) == f"commit {head[:12]}"
    with pytest.raises(SystemExit, match=r"expected a tree without changes.* --changed-tree"):
        transcripts.checked(head, False, changed=False)
    assert transcripts.checked(head, False, changed=True) == f"commit {head[:12]} with changes"
    with pytest.raises(SystemExit, match="expected a checkout with git"):
        transcripts.checked(None, None, changed=True)


def test_a_changed_tree_is_not_the_page(transcripts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It needs another file, and nothing of it is kept for the next run."""
    for further in ((), ("--out", "other.md", "--folder", "kept")):
        with pytest.raises(SystemExit):
            transcripts.main(["--changed-tree", *further])
        assert "give --out FILE, and no --folder" in capsys.readouterr().err


@pytest.mark.parametrize("model", MODELS)
def test_long_commands_are_typed_on_several_lines(transcripts: Any, model: str) -> None:
    """None is wider than the terminal, a shell takes them, and they are the same words to it."""
    for step in transcripts.steps(model):
        typed = transcripts.typed(step.line)
        assert max(map(len, typed.splitlines())) <= transcripts.COLUMNS
        assert plain(typed) == plain(step.line)
        subprocess.run(["/bin/sh", "-n", "-c", typed], check=True)


def test_a_server_runs_while_what_asks_it_runs(transcripts: Any) -> None:
    """The server and all after it are one group; each command before is one by itself."""
    found = transcripts.groups(transcripts.steps("olmoe"))
    assert [len(group) for group in found[:-1]] == [1] * (len(found) - 1)
    assert found[-1][0].serves
    assert len(found[-1]) == 4
    assert [step for group in found for step in group] == transcripts.steps("olmoe")


def request_of(transcripts: Any, model: str) -> dict[str, Any]:
    """What the command with eight requests sends, as a shell and a server read it."""
    (line,) = (step.line for step in transcripts.steps(model) if "/completions" in step.line)
    words = shlex.split(line.partition(" | ")[0])
    found: dict[str, Any] = json.loads(words[words.index("--data") + 1])
    return found


@pytest.mark.parametrize("model", MODELS)
def test_eight_prompts_are_sent(transcripts: Any, model: str) -> None:
    """In one request, decoded greedily: each time the page is written it has the same texts."""
    sent = request_of(transcripts, model)
    assert len(set(sent["prompt"])) == 8
    assert sent["temperature"] == 0


def test_the_bundled_model_is_asked_in_its_own_notation(transcripts: Any) -> None:
    """Unmodified, it answers each question and ends: a wrong answer on the page is the work of re-routing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sent = request_of(transcripts, "bundled")
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path())
    given = tokenizer(sent["prompt"], return_tensors="pt", padding=True)
    out = model.generate(**given, max_new_tokens=sent["max_tokens"], do_sample=False)
    tokens = out[:, given.input_ids.shape[1] :]
    assert (tokens == tokenizer.eos_token_id).any(dim=1).all()
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    answers = dict(zip(sent["prompt"], (text.rpartition(ANSWER_MARK)[2] for text in texts), strict=True))
    assert answers == {prompt: right_answer(prompt) for prompt in sent["prompt"]}


def right_answer(question: str) -> str:
    """What a question asks for, found without the code that makes questions."""
    task, _, rest = question.strip().partition(" ")
    if task == "sort":
        return " ".join(sorted(rest.split()))
    first, sign, second = re.split(r"([-+*%])", rest)
    return str({"+": add, "-": sub, "*": mul, "%": mod}[sign](int(first), int(second)))
