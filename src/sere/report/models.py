"""What a report says of one model: its measurements in groups that can be compared, and its tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sere.errors import name_some
from sere.report.cases import Key, Quality, Scored, Timing, newest
from sere.report.collect import Collected, model_name
from sere.report.read import Source
from sere.table import SimilarityTable, Tier

NAMES = {"right": "right answers", "kl": "divergence from the unmodified model"}


@dataclass(slots=True)
class ModelPart:
    """One model's part of a report.

    Attributes:
        name: The model.
        answers: What settings cost, by measure and key; only measurements of one group are compared.
        times: How fast they are, by measure and key.
        scores: What they score in tasks of lm-eval, by task and key.
        tunings: Tunings.
        tables: Tables with the files that they are from.
        replaced: How many measurements are not shown because the same was measured again later.
    """

    name: str
    answers: dict[tuple[str, Key], list[Quality]] = field(default_factory=dict)
    times: dict[tuple[str, Key], list[Timing]] = field(default_factory=dict)
    scores: dict[tuple[str, Key], list[Scored]] = field(default_factory=dict)
    tunings: list[Source] = field(default_factory=list)
    tables: list[tuple[str, SimilarityTable]] = field(default_factory=list)
    replaced: int = 0

    @property
    def tiers(self) -> list[Tier]:
        """The tiers of the newest tuning, or of the tables if there is none."""
        if self.tunings:
            record = self.tunings[-1].record
            return [Tier.from_mapping(name, values) for name, values in record["tiers"].items()]
        return [tier for _, table in self.tables for tier in table.tiers.values()]

    def warnings(self) -> list[str]:
        """Return, for people, which measurements are shown apart because they cannot be compared, and why."""
        found = self._apart(self.answers, lambda measure: NAMES[measure])
        asked = "questions, or how they were asked"
        found += self._apart(self.scores, lambda task: f"{task} (lm-eval)", asked)
        found += self._apart(self.times, lambda measure: f"times ({measure})")
        return found + self._other_digests() + self._other_tables() + self._not_shown()

    def _apart(
        self, groups: Iterable[tuple[str, Key]], name: Callable[[str], str], texts: str = "texts"
    ) -> list[str]:
        """Return, for each way in which keys differ, which measurements have such.

        Args:
            groups: Measures with their keys.
            name: What people call a measure.
            texts: What other texts are called.
        """
        keys: dict[str, list[Key]] = {}
        for measure, key in groups:
            keys.setdefault(measure, []).append(key)
        apart: dict[tuple[int, str], list[str]] = {}
        for measure, (first, *others) in keys.items():
            parts = dict.fromkeys(part for key in others for part in _parts(first, key))
            if parts:
                why = ", ".join(texts if part == "texts" else part for part in parts)
                apart.setdefault((len(others) + 1, why), []).append(name(measure))
        return [
            f"{self.name}: {count} measurements{' each' * (len(names) > 1)} of {name_some(names)} "
            f"cannot be compared and are shown apart, because they differ in {why}."
            for (count, why), names in apart.items()
        ]

    def _not_shown(self) -> list[str]:
        found = []
        if self.replaced:
            found.append(
                f"{self.name}: {self.replaced} measurements are not shown, because the same was measured "
                "again in a later record."
            )
        if len(self.tunings) > 1:
            *others, newest_one = self.tunings
            found.append(
                f"{self.name}: of {len(self.tunings)} tunings only {newest_one.name} is shown; not shown: "
                f"{name_some([one.name for one in others])}."
            )
        return found

    def _other_digests(self) -> list[str]:
        models = [key.model for _, key in (*self.answers, *self.scores)]
        models += [model_name(source.record["model"]) for source in self.tunings]
        models += [f"{table.identity.name} ({table.identity.digest[:8]})" for _, table in self.tables]
        named = [one for one in dict.fromkeys(models) if one.endswith(")")]
        if len(named) < 2:
            return []
        return [f"{self.name}: the records are of different models of this name: {name_some(named)}."]

    def _other_tables(self) -> list[str]:
        given = {table.fingerprint[:8] for _, table in self.tables}
        groups: list[Sequence[Quality | Scored]] = [*self.answers.values(), *self.scores.values()]
        used = {case.table.rpartition(" ")[2] for cases in groups for case in cases if case.table}
        used |= {str(source.record["table"])[:8] for source in self.tunings}
        others = sorted(used - given)
        if not given or not others:
            return []
        return [
            f"{self.name}: records were measured with other tables ({name_some(others)}) than the given one "
            f"({name_some(sorted(given))})."
        ]


def _parts(first: Key, other: Key) -> list[str]:
    if first.model.startswith(other.model) or other.model.startswith(first.model):
        # One record does not say the digest, so that nothing says that the models differ.
        other = replace(other, model=first.model)
    return [part.partition(" (")[0] for part in first.differences(other)]


def by_model(collected: Collected) -> list[ModelPart]:
    """Return the parts of a report, one for each model, in the order of the sources.

    Args:
        collected: All that the sources say.
    """
    parts: dict[str, ModelPart] = {}

    def part(name: str) -> ModelPart:
        plain = re.split(r" \(|, ", name)[0]
        return parts.setdefault(plain, ModelPart(plain))

    found: list[Quality | Timing | Scored] = [*collected.qualities, *collected.timings, *collected.scores]
    for one in found:
        part(one.key.model).replaced += 1
    for case in newest(collected.qualities):
        part(case.key.model).replaced -= 1
        part(case.key.model).answers.setdefault((case.measure, case.key), []).append(case)
    for timing in newest(collected.timings):
        part(timing.key.model).replaced -= 1
        part(timing.key.model).times.setdefault((timing.measure, timing.key), []).append(timing)
    for scored in newest(collected.scores):
        part(scored.key.model).replaced -= 1
        part(scored.key.model).scores.setdefault((scored.task, scored.key), []).append(scored)
    for source in collected.sources:
        if source.kind == "sere-tune":
            part(str(source.record["model"]["name"])).tunings.append(source)
        elif source.table is not None:
            part(source.table.identity.name).tables.append((source.name, source.table))
    return list(parts.values())


def layers_of(part: ModelPart) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return E and K by layer index; empty where no source says which layers there are.

    Args:
        part: A model's part.
    """
    if part.tables:
        table = part.tables[-1][1]
        return {i: layer.num_experts for i, layer in table.layers.items()}, table.identity.slots
    if not part.tunings:
        return {}, {}
    record = part.tunings[-1].record
    indices = {int(index) for tier in record["tiers"].values() for index in tier.get("layers") or {}}
    for group in (record["layers"].get("sensitivities") or {}).get("layers", []):
        indices |= set(group["layers"])
    model = record["model"]
    return dict.fromkeys(sorted(indices), model["num_experts"]), dict.fromkeys(indices, model["top_k"])


def settings_of(cases: Sequence[Any]) -> list[str]:
    """Return the settings of cases, each once."""
    return list(dict.fromkeys(case.setting for case in cases))
