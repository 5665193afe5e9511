"""Build every Mixture-of-Experts architecture of the installed Transformers tiny, and record what works.

    PYTHONPATH=. python benchmarks/architectures.py            all; a minute
    PYTHONPATH=. python benchmarks/architectures.py NAME ...   some model types, printed and not recorded

The checks are those of ``tests/architectures``. ``benchmarks/results/architectures.json`` keeps one entry for
each release of Transformers; a run replaces its own. From it ``docs/build/documents.py`` writes the table of
docs/architectures.md. The exit status is 1 where a check failed in another way than by a refusal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import transformers

from sere.files import write_json
from sere.provenance import provenance
from tests.support.architectures.build import architectures, folders
from tests.support.architectures.checks import outcomes

RESULTS = Path(__file__).resolve().parent / "results" / "architectures.json"
FAULT = "fault: "


def main() -> int:
    """Check all architectures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    entries = [_entry(folder, name) for folder, name in _all() if name in (arguments.names or [name])]
    if arguments.names:
        print(json.dumps(entries, indent=1))
    else:
        known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
        known[transformers.__version__] = {"provenance": provenance(), "architectures": entries}
        write_json(arguments.out, known)
    faults = [entry["name"] for entry in entries if any(FAULT in text for text in entry["checks"].values())]
    print(
        f"{len(entries)} architectures of Transformers {transformers.__version__}; faults: {faults or 'none'}"
    )
    return int(bool(faults))


def _all() -> list[tuple[str, str]]:
    return [(folder, name) for folder in folders() for name in architectures(folder)]


def _entry(folder: str, name: str) -> dict[str, Any]:
    """Check one architecture."""
    with tempfile.TemporaryDirectory() as place:
        try:
            checks = outcomes(folder, name, Path(place))
        except Exception as error:  # whatever is wrong with one must not keep the others from being checked
            checks = {"found": f"{FAULT}{type(error).__name__}: {error}"}
    return {"name": name, "class": architectures(folder)[name].__name__, "checks": checks}


if __name__ == "__main__":
    sys.exit(main())
