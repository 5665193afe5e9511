"""Run sere's commands on two small models and write what a terminal shows of them: ``make transcripts``.

The models are the bundled one and a random OLMoE. The commands run in a temporary folder, each as its line
says, on a pseudo-terminal. The document is docs/transcripts.md; all of it is from one commit, so a tree with
changes is refused. Uploads and downloads reach a stand-in of the hub on this machine. It needs vLLM, lm-eval
and curl, the ports 8000 and 9400, and takes about a quarter of an hour. If a command fails, what it printed
is shown and the document stays as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.terminal import Session, screen_text, session, without_colors
from transcript_models import EXPERTS, TEXTS, prepare
from transcript_steps import CHECKOUT, COLUMNS, FOLDER, MODELS, PORTS, Step, groups, steps, typed

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "transcripts.md"
# Of one command, or until the server answers; on a busy machine with a cold disk.
LIMIT_S = 900.0
_HUB = "https://HUB"
# What of this machine's settings would change a command.
_OWN = ("SERE_", "VLLM_", "HF_")

_INTRO = """# Transcripts

What sere's commands print, on the model that comes with it and on a tiny random OLMoE (two layers, {experts}
experts, a tokenizer of characters). The sizes are small, so that all of it takes minutes: the numbers show
the form of the output, not quality or speed. `make transcripts` runs the commands and writes this page
(`docs/build/transcripts.py`). All of it is from {source}, on {machine}; {versions}.

- This is what is left on a terminal of {columns} columns: both output streams, progress bars in their last
  state, long lines broken where the terminal breaks them.
- Each command runs in a folder that is called `FOLDER` here. In it, `olmoe` is the second model,
  `bundled-config` and `olmoe-config` hold a config alone, and `tasks`, `prompts.txt` and `texts.jsonl`
  ({texts} prompts, and two rows without text) were written by the script. `CHECKOUT` is the folder of sere's
  repository, `ENVIRONMENT` that of Python's packages.
- `table push` and `table pull` reach a stand-in of the Hugging Face hub through the real client;
  `{hub}` stands for its address.
- The server is started by the name of vLLM's module, because the package for CPUs has no `vllm serve`
  ([Start](vllm.md#start)). It runs until the commands below it have run, and ends by Ctrl-C.
- Elsewhere, `vllm` had its log at the level of errors. On a GPU, nothing here has run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DOCUMENT, metavar="FILE", help="(default: %(default)s)")
    text = (
        "keep what was printed here, by commit; commands whose output is kept are not run again (default: a "
        "temporary folder)"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "run a tree with changes, to try this script; needs --out"
    parser.add_argument("--changed-tree", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.changed_tree and (args.folder is not None or args.out.resolve() == DOCUMENT):
        parser.error("--changed-tree: nothing of it is kept; give --out FILE, and no --folder")
    from sere.files import atomic_path

    head, clean = _tree()
    source = checked(head, clean, changed=args.changed_tree)
    with ExitStack() as stack:
        given = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="sere-transcripts-"))
        folder = Path(given).resolve() / source.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        page = [_introduction(source), *_sections(folder)]
        if _tree() != (head, clean):
            sys.exit(f"expected the tree to stay at {source} while commands run, got {_tree()}; run it again")
    with atomic_path(args.out) as temporary:
        temporary.write_text("\n".join(page), encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def checked(head: str | None, clean: bool | None, *, changed: bool) -> str:
    """Return the name of the state of the source that is run.

    Args:
        head: The commit.
        clean: Whether nothing differs from it.
        changed: Whether differences are allowed.

    Raises:
        SystemExit: There is no commit, or something differs from it.
    """
    if head is None:
        sys.exit("expected a checkout with git, got none; the page names the commit that it is from")
    if not clean and not changed:
        sys.exit(
            f"expected a tree without changes, got one that differs from commit {head[:12]}: commit them, or "
            "try them with --changed-tree --out FILE"
        )
    return f"commit {head[:12]}" if clean else f"commit {head[:12]} with changes"


def kept_at(folder: Path, line: str) -> Path:
    """Return where the output of a command is kept, in the folder of its commit."""
    return folder / ".outputs" / f"{hashlib.sha256(line.encode()).hexdigest()[:16]}.txt"


def by_names(text: str, names: Mapping[str, str]) -> str:
    """Return a text with names for paths and addresses.

    A longer path counts first, and none counts within a longer name. A root, an empty path, and the current
    folder stand for nothing of their own.

    Args:
        text: Any.
        names: The name of each path or address.
    """
    paths = sorted((path for path in names if len(Path(path).parts) > 1), key=len, reverse=True)
    if not paths:
        return text
    some = "|".join(map(re.escape, paths))
    return re.sub(rf"(?<![\w.-])(?:{some})(?![\w-]|\.\w)", lambda found: names[found[0]], text)


def shown(written: str, names: Mapping[str, str]) -> str:
    """Return what is left on the terminal of what a command wrote, with names for paths.

    Args:
        written: With everything that controls the terminal.
        names: As for `by_names`.
    """
    return screen_text(by_names(without_colors(written), names), COLUMNS)


def _tree() -> tuple[str | None, bool | None]:
    from sere.provenance import commit

    commit.cache_clear()
    return commit()


def _sections(folder: Path) -> Iterator[str]:
    prepare(folder)
    with _hub() as hub:
        environment = _environment(folder, hub)
        names = {
            str(folder): FOLDER, str(ROOT): CHECKOUT, sys.prefix: "ENVIRONMENT", str(Path.home()): "HOME",
            hub["HF_ENDPOINT"]: _HUB, tempfile.gettempdir(): "TEMPORARY",
        }  # fmt: skip
        for model, title in MODELS.items():
            yield f"## {title}\n"
            for group in groups(steps(model)):
                kept = {step: kept_at(folder, step.line) for step in group}
                if not all(path.is_file() for path in kept.values()):
                    for step, written in _run(group, folder, environment).items():
                        kept[step].parent.mkdir(exist_ok=True)
                        kept[step].write_text(shown(written, names), encoding="utf-8")
                yield from (_part(step, path.read_text(encoding="utf-8")) for step, path in kept.items())


def _run(group: Sequence[Step], folder: Path, environment: Mapping[str, str]) -> dict[Step, str]:
    """Run some commands, of which the first may be a server; return what each wrote."""
    with ExitStack() as stack:
        running = [(step, stack.enter_context(_started(step, folder, environment))) for step in group[:1]]
        for step, one in running:
            if step.serves:
                _wait_for_server(step, one)
            else:
                _wait_for_end(step, one)
        for step in group[1:]:
            with _started(step, folder, environment) as one:
                _wait_for_end(step, one)
            running.append((step, one))
        if group[0].serves:
            running[0][1].interrupt()
    return {step: one.screen.raw for step, one in running}


@contextmanager
def _started(step: Step, folder: Path, environment: Mapping[str, str]) -> Iterator[Session]:
    print(f"{time.strftime('%H:%M:%S')} {step.line}", file=sys.stderr, flush=True)
    on_hub = step.line.startswith("sere table pu")
    own = {"HF_HUB_OFFLINE": "0" if on_hub else "1", "VLLM_LOGGING_LEVEL": "INFO" if step.serves else "ERROR"}
    line = step.line.replace(FOLDER, str(folder)).replace(CHECKOUT, str(ROOT))
    with session(line, COLUMNS, folder, {**environment, **own}) as running:
        yield running


def _wait_for_end(step: Step, running: Session) -> None:
    code = running.wait(LIMIT_S)
    if code != 0:
        got = f"none within {LIMIT_S:g} s" if code is None else str(code)
        running.interrupt()
        sys.exit(f"{running.screen.raw}\n{step.line}: expected exit code 0, got {got}")


def _wait_for_server(step: Step, running: Session) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + LIMIT_S
    while running.code is None and time.monotonic() < deadline:
        try:
            with opener.open(f"http://127.0.0.1:{PORTS[0]}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    running.interrupt()
    sys.exit(f"{running.screen.raw}\n{step.line}: expected an answer within {LIMIT_S:g} s, got none")


def _environment(folder: Path, hub: Mapping[str, str]) -> dict[str, str]:
    """Return what commands see: nothing of this user's settings and caches.

    Raises:
        SystemExit: Another server has one of the ports.
    """
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"expected port {port} to be free, got a server that answers there; end it first")
    commands = folder / ".bin"
    commands.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, started in (("python", python), ("sere", f"{python} -m sere")):
        (commands / name).write_text(f'#!/bin/sh\nexec {started} "$@"\n')
        (commands / name).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    return {
        **inherited, **hub,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"),
        "SERE_CACHE_DIR": str(folder / ".cache"), "HF_HOME": str(folder / ".hub"),
        "VLLM_CACHE_ROOT": str(folder / ".vllm"), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip


@contextmanager
def _hub() -> Iterator[dict[str, str]]:
    """Run the stand-in of the hub; yield the environment in which commands reach it."""
    command = [sys.executable, "-m", "tests.support.hub_server"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(command[1:])}: expected the address of the hub's stand-in, got no line")
        yield json.loads(line)
    finally:
        server.terminate()
        server.wait()


def _part(step: Step, output: str) -> str:
    return f"### {step.title}\n\n```\n{typed(step.line)}\n```\n\n```text\n{output}\n```\n"


def _introduction(source: str) -> str:
    from sere.provenance import describe_machine, machine, versions

    found = versions()
    named = [
        f"{name} {found[name]}" for name in ("torch", "transformers", "vllm", "vllm-cpu") if name in found
    ]
    text = _INTRO.format(
        experts=EXPERTS, texts=TEXTS, source=source, machine=describe_machine(machine()),
        versions=", ".join(named), hub=_HUB, columns=COLUMNS,
    )  # fmt: skip
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(text: str) -> str:
    """Return a paragraph wrapped again, because values have their own lengths; lists stay as they are."""
    if text.startswith(("- ", "#")):
        return text
    return textwrap.fill(" ".join(text.split()), COLUMNS, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
