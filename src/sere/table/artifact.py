"""The similarity table: what calibration returns and every integration takes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, Unpack

from sere.config import RerouteConfig
from sere.defaults import TABLE
from sere.errors import InputError, TableError, name_some
from sere.hub import Published
from sere.identity import ModelIdentity, span
from sere.similarity import LayerSimilarity
from sere.table import sharing, storage
from sere.table.additions import check_additions, digest_of
from sere.table.fit import check_identity, check_slots
from sere.table.layers import check_layers, critical_experts, from_tensors, read_zeros_as_unknown, to_tensors
from sere.table.locate import locate_table
from sere.table.routing_sample import RoutingSample, is_of_sample
from sere.table.tiers import Tier, resolve, tiers_from_json

OWN_TEXTS = "written by the model itself, at temperature 1"
"""What a table's provenance says of its texts, if nobody gave any."""


@dataclass(frozen=True, eq=False)
class SimilarityTable:
    """The similarities of all MoE layers of one model, and where they come from.

    Attributes:
        layers: One `LayerSimilarity` per decoder-layer index, in layer order.
        identity: The model that was calibrated.
        metric: The metric's name.
        metric_parameters: Its parameters, JSON-ready.
        calibration_tokens: Number of calibration tokens; 0 for a metric without data, or if not known.
        data_digest: Hex digest of the calibration tokens; empty if there were none.
        seed: Seed of the choice of texts, or None.
        provenance: Versions, commit, machine, time, notes; JSON-ready. Not part of the fingerprint.
        tiers: Recommended settings by name. Not part of the fingerprint.
        routing: How the router chose on some calibration tokens, or None if that is not known. Not part of
            the fingerprint.

    Raises:
        TableError: There is no layer, layers or their numbers of experts differ from the identity, a layer
            is an identity matrix, which means that similarities are missing, or tiers or routing sample do
            not belong to these layers.

    Source: docs/method.md section 3.
    """

    layers: Mapping[int, LayerSimilarity]
    identity: ModelIdentity
    metric: str
    metric_parameters: Mapping[str, Any] = field(default_factory=dict)
    calibration_tokens: int = 0
    data_digest: str = ""
    seed: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    routing: RoutingSample | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(self.layers.items()))))
        object.__setattr__(self, "tiers", MappingProxyType(dict(self.tiers)))
        check_layers(self.layers, self.identity)
        check_additions(self.layers, self.tiers, self.routing)

    def __repr__(self) -> str:
        return (
            f"SimilarityTable({self.identity.name!r}, {self.metric}, L={len(self.layers)}, "
            f"E={span(self.identity.experts.values())}, K={span(self.identity.slots.values())}, "
            f"fingerprint {self.fingerprint[:12]})"
        )

    @property
    def num_experts(self) -> int:
        """Number of experts per layer: the largest, if layers differ."""
        return self.identity.num_experts

    @property
    def own_texts(self) -> bool:
        """Whether the model wrote the calibration texts itself."""
        made = self.provenance.get("calibration")
        return isinstance(made, Mapping) and made.get("texts") == OWN_TEXTS

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over similarities, identity, metric and data, as hex; tiers and routing do not count."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, tensor in sorted(to_tensors(self.layers).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; `sere.table.storage` describes the format.

        Raises:
            OutputError: It cannot be written, or a file that is not a table is there; the text says which.
        """
        tiers = {name: tier.to_mapping() for name, tier in self.tiers.items()}
        sample = {} if self.routing is None else self.routing.to_tensors()
        entries = self._description()
        entries |= {"provenance": dict(self.provenance), "fingerprint": self.fingerprint}
        entries |= {"tiers": tiers, "additions": digest_of(tiers, sample)}
        storage.write(path, entries, to_tensors(self.layers) | sample)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check a file that `save` wrote.

        Raises:
            TableError: It is missing, damaged, of an unknown version or invalid; the text says which.
        """
        stored = storage.read(path)
        try:
            return cls._from_stored(stored)
        except (InputError, TableError) as error:
            raise TableError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Load a table from a file, a folder, or a repository on the hub.

        Args:
            source: A path, or ``owner/name`` or ``owner/name@revision``; a path that exists wins.
            revision: The repository's branch, tag or commit; None for the main branch.
            token: An access token for the hub; None for the one that the user is logged in with.

        Raises:
            HubError: The repository, its revision or its table is missing, private or out of reach.
            TableError: The file is missing, damaged or no table.
            ConfigError: A revision is given for a path.
        """
        return cls.load(locate_table(source, revision=revision, token=token))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, base_model: str | None = None
    ) -> tuple[Path, ...]:
        """Write the table and its card to a folder, as `push_to_hub` does to a repository.

        Args:
            folder: Created if need be. A card there that sere did not write, such as the model's, stays.
            base_model: The model's name on the hub, if it is not the table's own name for it.

        Returns:
            The files that were written.

        Raises:
            OutputError: One cannot be written, or a file that is not a table is in its place.
        """
        self.save(table := Path(folder) / TABLE)
        return (table, *sharing.save_card(self, Path(folder), base_model=base_model))

    def push_to_hub(self, repository: str, **options: Unpack[sharing.PushOptions]) -> Published:
        """Upload the table and its card to a repository on the hub, in one commit.

        Args:
            repository: ``owner/name`` or ``owner/name@branch``; created if it does not exist. A card there
                that sere did not write, such as that of a model's repository, stays.
            **options: Keyword arguments, all optional:

                - ``revision``: The branch to commit to; created if it does not exist.
                - ``private``: Whether a new repository is private; None (default) for the owner's default.
                - ``create_pr``: Open a pull request instead of committing; default False.
                - ``commit_message``: Its message.
                - ``base_model``: The model's name on the hub, if it is not the table's own name for it.
                - ``token``: An access token; None (default) for the one that the user is logged in with.

        Returns:
            The repository with the commit as its revision, and the page of the commit or pull request.

        Raises:
            HubError: The hub refuses it or cannot be reached.
            ConfigError: ``repository`` is not such a name.
        """
        return sharing.push(self, repository, self.save, **options)

    def check(self, identity: ModelIdentity) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        Args:
            identity: The model at hand, from `sere.structure.identify`. Its name and its K may differ: each
                is logged once.

        Raises:
            TableMismatch: The architecture, the layers or a layer's number of experts differ; the text names
                both sides and the values that differ.
        """
        check_identity(self.identity, identity)
        self.check_slots(identity.slots)

    def check_slots(self, slots: Mapping[int, int]) -> None:
        """Log, once, that the model routes to another number of experts per token than at calibration.

        Args:
            slots: The model's K by decoder-layer index.
        """
        check_slots(self.identity, self.metric, slots)

    def with_tiers(self, tiers: Mapping[str, Tier]) -> Self:
        """Return this table with these recommended settings in place of its own; the fingerprint stays.

        Args:
            tiers: By name.

        Raises:
            TableError: A tier has another name, or names layers that the table lacks.
        """
        return replace(self, tiers=tiers)

    def without_gains(self) -> Self:
        """Return this table without its tiers' τ; itself if none has one.

        For experts that compute all slots in any case: a slot that is given up saves no time there, so that τ
        would cost answers for nothing. `sere.table.GAINS_LEFT_OUT` says so.
        """
        tiers = {name: tier.without_gain() for name, tier in self.tiers.items()}
        return self if tiers == dict(self.tiers) else self.with_tiers(tiers)

    def settings(self, config: RerouteConfig) -> RerouteConfig:
        """Return settings in which a tier is replaced by the numbers that it stands for here.

        Args:
            config: The settings. Without ``tier``, ``active_experts="auto"`` means the tier ``"balanced"``,
                if the table has it and the settings are not those of the preset ``"paper"``.

        Raises:
            ConfigError: ``tier`` names one that the table lacks; the text names those that it has.

        Source: docs/method.md section 4, "How many experts".
        """
        return resolve(config, self.tiers)

    def critical_experts(self, layer: int, threshold: float) -> tuple[int, ...]:
        """Return the experts that no other resembles, as far as is known: they are kept whatever the batch.

        Args:
            layer: Decoder-layer index.
            threshold: ρ; compared in float32, like the similarities.

        Raises:
            InputError: The table has no such layer.
        """
        if layer not in self.layers:
            raise InputError(f"layer: expected one of [{name_some(self.layers)}], got {layer}")
        return critical_experts(self.layers[layer].similarity, threshold)

    def _description(self) -> dict[str, Any]:
        """Return everything that identifies the table except its tensors, JSON-ready, by a file's names."""
        return {
            "identity": self.identity.to_mapping(),
            "metric": self.metric,
            "metric_parameters": dict(self.metric_parameters),
            # The name in files and fingerprints since version 1.
            "num_tokens": self.calibration_tokens,
            "data_digest": self.data_digest,
            "seed": self.seed,
        }

    @classmethod
    def _from_stored(cls, stored: storage.StoredTable) -> Self:
        entries = dict(stored.entries)
        fingerprint, identity = entries.pop("fingerprint"), entries.pop("identity")
        entries["calibration_tokens"] = entries.pop("num_tokens")
        sample = {name: tensor for name, tensor in stored.tensors.items() if is_of_sample(name)}
        layers = from_tensors({name: t for name, t in stored.tensors.items() if name not in sample})
        tiers, additions = entries.pop("tiers", {}), entries.pop("additions", None)
        try:
            entries |= {"tiers": tiers_from_json(tiers), "routing": RoutingSample.from_tensors(sample)}
            table = cls(layers=layers, identity=ModelIdentity.from_mapping(identity), **entries)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"the model identity in its header is invalid: {error!r}; calibrate again"
            ) from error
        if table.fingerprint != fingerprint:
            raise TableError(
                f"expected the fingerprint {fingerprint[:12]} of its header, got {table.fingerprint[:12]}: "
                "the content was changed after it was written; calibrate again or copy it again"
            )
        if additions not in (None, digest_of(tiers, sample)):
            raise TableError(
                "its tiers or its routing sample were changed after it was written; calibrate again or copy "
                "it again"
            )
        if stored.version > 1:
            return table
        known = {i: read_zeros_as_unknown(layer, table.metric) for i, layer in table.layers.items()}
        return replace(table, layers=known)
