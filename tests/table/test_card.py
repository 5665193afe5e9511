"""The card of a shared table, and where it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sere.defaults import TABLE
from sere.errors import ConfigError, HubError
from sere.table import SimilarityTable, Tier
from sere.table.card import CARD, write_card
from tests.support.hub_server import TOKEN, HubServer, Repo, serving
from tests.support.tables import identity, table

# The client's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "mill/moe-sere"
EVIDENCE = {
    "by_batch_size": {
        "16": {"experts_before": 57.4, "experts_after": 31.5,
               "kl": {"value": 0.00188, "low": 0.0015, "high": 0.00236}}
    },
    "texts": {"held-out": {"prompts": 40, "tokens": 2560, "digest": "ab" * 32}},
}  # fmt: skip


def tuned() -> SimilarityTable:
    """Return a table of a model on the hub with a tier that was measured."""
    return table(
        identity=replace(identity(), name="mill/moe"),
        tiers={"balanced": Tier("balanced", 3, evidence=EVIDENCE)},
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a model's repository that has a card of its own."""
    with serving(tmp_path / "cache", monkeypatch) as server:
        server.repositories["mill/moe"] = Repo()
        server.repositories["mill/moe"].commit({CARD: b"# A model"})
        yield server


def test_the_card_has_metadata_for_the_hub() -> None:
    """The library, the model that it belongs to, and tags, in the hub's own format."""
    data = ModelCard(write_card(tuned())).data
    assert (data.library_name, data.base_model) == ("sere", "mill/moe")
    assert "mixture-of-experts" in data.tags
    assert ModelCard(write_card(table())).data.base_model is None
    assert ModelCard(write_card(table(), base_model="mill/other")).data.base_model == "mill/other"


@pytest.mark.parametrize(
    "line",
    [
        r"# Similarity table of mill/moe",
        r'vllm serve MODEL --additional-config \'{"sere": {"table": "mill/moe-sere"}}\'',
        r'with sere.apply\(model, "mill/moe-sere"\):',
        r"\| architecture +\| model_type any_moe, hidden_size 32, .*; 2 MoE layers of 5 experts, 2 per token",
        r"\| metric +\| `cka` \(kernel=rbf, window=128, bandwidth=1.0\)",
        r"\| calibration tokens +\| 51,200 ",
        rf"\| digest of the tokens +\| `{'cd' * 32}`",
        rf"\| fingerprint +\| `{tuned().fingerprint}`",
        r"\| balanced +\| 16 +\| 3 +\| 57.4 > 31.5 +\| KL 0.0019 +\| 0.0015 to 0.0024 +\|",
        rf"Measured by `sere tune` \(held-out: 40 prompts, 2560 tokens, digest `{'ab' * 6}`\).",
        r"The similarity of an expert to the one that replaces it best is \d\.\d{3} in the mean; .*",
    ],
)
def test_the_card_says(line: str) -> None:
    """Model, use, metric, texts, tiers with their evidence."""
    assert re.search(line, write_card(tuned(), repository=NAME))


def test_a_card_without_tiers_says_how_to_make_some() -> None:
    """Nothing is recommended that was not measured."""
    text = write_card(replace(table(), calibration_tokens=0, data_digest=""))
    assert "The table recommends no settings. `sere tune` measures some" in text
    assert re.search(r"\| calibration tokens +\| none ", text)


def test_a_folder_gets_table_and_card(tmp_path: Path) -> None:
    """``save_pretrained`` and ``from_pretrained`` fit; the card is replaced when it is written again."""
    (tmp_path / "moe").mkdir()
    for made in (table(), tuned()):
        assert made.save_pretrained(tmp_path / "moe") == (tmp_path / "moe" / TABLE, tmp_path / "moe" / CARD)
    assert SimilarityTable.from_pretrained(tmp_path / "moe").fingerprint == tuned().fingerprint
    assert (tmp_path / "moe" / CARD).read_text(encoding="utf-8") == write_card(tuned())


def test_the_card_of_somebody_else_stays(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model's own card, in its folder and in its repository; the log says so."""
    (tmp_path / CARD).write_text("# A model")
    assert tuned().save_pretrained(tmp_path) == (tmp_path / TABLE,)
    assert (tmp_path / CARD).read_text() == "# A model"
    tuned().push_to_hub("mill/moe", token=TOKEN)
    files = hub.repositories["mill/moe"].commits[hub.repositories["mill/moe"].branches["main"]]
    assert files[CARD] == b"# A model"
    assert TABLE in files
    assert caplog.text.count("was not written by sere and stays as it is; the table goes beside it") == 2


def test_what_was_pushed_is_loaded(hub: HubServer) -> None:
    """The table with its tiers, and the card with the repository's name; a second push replaces both."""
    table().push_to_hub(NAME, token=TOKEN)
    done = tuned().push_to_hub(NAME, token=TOKEN, base_model="mill/base")
    loaded = SimilarityTable.from_pretrained(str(done.repository))
    assert (loaded.fingerprint, loaded.tiers) == (tuned().fingerprint, tuned().tiers)
    card = hub.repositories[NAME].commits[str(done.repository.revision)][CARD].decode()
    assert card == write_card(tuned(), repository=NAME, base_model="mill/base")


@pytest.mark.parametrize("name", ["moe", "mill/moe.sere", "/mill/moe"])
def test_only_a_repository_is_pushed_to(hub: HubServer, name: str) -> None:
    """A name that would be read as a path could not be loaded again."""
    with pytest.raises(ConfigError, match=rf"^repository: expected a name like 'owner/name', got '{name}'"):
        table().push_to_hub(name)
    assert hub.requests == []


def test_a_push_without_a_token_is_refused(hub: HubServer) -> None:
    """Before anything is created."""
    with pytest.raises(HubError, match=r"^mill/moe-sere: .* hf auth login, or set HF_TOKEN$"):
        table().push_to_hub(NAME)
    assert NAME not in hub.repositories
