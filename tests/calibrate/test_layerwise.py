from __future__ import annotations

import json
import weakref
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sere.calibrate import calibrate, calibrate_checkpoint, memory
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.layerwise import by_layers
from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.runner import LayerRunner
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder, resumable
from sere.errors import DataError, InputError, UnsupportedModel
from sere.structure import find_experts
from tests.support.calibration import char_tokenizer, load_whole, save_tiny, settings, some_tokens, worst
from tests.support.damage import drop
from tests.support.tiny import ARCHITECTURES, Looping, tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8
OPTIONS: dict[str, Any] = {"max_tokens": 100, "seq_len": 16, "progress": False}
# Full and sliding attention in turn, linear attention, dense layers first, and layers behind all experts.
DEEP = [
    ("gpt_oss", {"num_hidden_layers": 4}),
    ("qwen3_next", {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}),
    ("deepseek_v3", {"num_hidden_layers": 4, "first_k_dense_replace": 2}),
    ("qwen3_moe", {"num_hidden_layers": 4, "mlp_only_layers": [0, 3]}),
]


def _by_layers(path: Path, folder: Path, *metrics: str, in_memory: bool = False, **options: Any) -> Any:
    work = WorkFolder(folder, {"run": 1})
    wanted = settings(*metrics, **options)
    return collect_layerwise(Skeleton(path), some_tokens(), wanted, work, states_in_memory=in_memory)


def _whole(path: Path, *metrics: str, **options: Any) -> Any:
    model = load_whole(path)
    return collect_in_memory(model, find_experts(model), some_tokens(), settings(*metrics, **options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_model_in_memory_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    """Layer by layer, every metric of every architecture is exactly what the whole model gives."""
    path = save_tiny(tmp_path, architecture)
    assert worst(_by_layers(path, tmp_path / "work"), _whole(path)) == 0


@pytest.mark.parametrize(("architecture", "overrides"), DEEP)
def test_equals_on_deeper_and_mixed_stacks(architecture: str, overrides: Any, tmp_path: Path) -> None:
    """Different kinds of decoder layers in one stack each get their own masks and arguments."""
    path = save_tiny(tmp_path, architecture, **overrides)
    assert worst(_by_layers(path, tmp_path / "work", "frobenius"), _whole(path, "frobenius")) == 0


def test_equals_in_bfloat16(tmp_path: Path) -> None:
    """A bfloat16 checkpoint is computed in bfloat16 in both ways, and its hidden states survive the file."""
    path = tmp_path / "model"
    tiny_model("qwen3_moe", num_hidden_layers=3).to(torch.bfloat16).save_pretrained(path)
    for in_memory in (True, False):
        result = _by_layers(path, tmp_path / f"work{in_memory}", "projection", in_memory=in_memory)
        assert worst(result, _whole(path, "projection")) == 0


def test_one_layer_has_weights_at_a_time(tmp_path: Path) -> None:
    """While a layer is computed, the others and the output head are without weights; afterward all are."""
    skeleton = Skeleton(save_tiny(tmp_path, "deepseek_v3"))
    for index in range(len(skeleton.layers)):
        with skeleton.loaded(index):
            filled = [i for i, layer in enumerate(skeleton.layers) if not _empty(layer)]
            assert filled == [index]
    assert all(map(_empty, skeleton.layers))
    skeleton.load_rest()
    assert not skeleton.model.get_input_embeddings().weight.is_meta
    assert skeleton.model.get_output_embeddings().weight.is_meta


def _empty(layer: torch.nn.Module) -> bool:
    return all(value.is_meta for value in layer.state_dict().values())


def test_no_tensor_of_a_layer_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's weights are gone from memory before the next layer's come: nothing keeps a reference."""
    refs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    load = Skeleton._load

    def watched(self: Skeleton, names: Any) -> None:
        load(self, names)
        refs.extend(weakref.ref(v) for v in self.layers.state_dict(keep_vars=True).values() if not v.is_meta)

    monkeypatch.setattr(Skeleton, "_load", watched)
    monkeypatch.setattr(
        by_layers, "_return_freed_memory", lambda: alive.append(sum(ref() is not None for ref in refs))
    )
    _by_layers(save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4), tmp_path / "work", "frobenius")
    assert len(refs) == 4 * 11
    assert alive == [0, 0, 0, 0]


def test_files_are_closed_once_a_layer_is_read(tmp_path: Path) -> None:
    """While a layer is computed no shard is open or mapped: mapped pages would count as memory."""
    path = save_tiny(tmp_path, "qwen3_moe")
    skeleton = Skeleton(path)
    with skeleton.reader as files:
        files.read(next(iter(files.files)))
        assert _in_use(path)
    with skeleton.loaded(0):
        assert not _in_use(path)
    assert not _in_use(path)


def _in_use(path: Path) -> bool:
    """Whether this process has a file of the folder open or mapped."""
    opened = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return any(str(path) in name for name in (*opened, Path("/proc/self/maps").read_text(encoding="utf-8")))


class _StopHere(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def _stop_after(monkeypatch: pytest.MonkeyPatch, layers: int, *, before_manifest: bool) -> None:
    finish = WorkFolder.finish

    def stopping(self: WorkFolder, layer: int, states: Any) -> None:
        if before_manifest and layer == layers:
            raise _StopHere
        finish(self, layer, states)
        if not before_manifest and layer == layers - 1:
            raise _StopHere

    monkeypatch.setattr(WorkFolder, "finish", stopping)


# Killed right behind a finished layer, and behind a layer's work but before the manifest names it.
@pytest.mark.parametrize("before_manifest", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_interrupted_run_goes_on_and_ends_equal(
    layers: int, before_manifest: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed behind layer k computes only the layers from k on, and its table is the same."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4)
    whole = calibrate(path, char_tokenizer(), TEXTS, low_memory=False, **OPTIONS)
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    with monkeypatch.context() as patch:
        _stop_after(patch, layers, before_manifest=before_manifest)
        with pytest.raises(_StopHere):
            calibrate_checkpoint(path, TEXTS, **arguments)
    loaded: list[int] = []
    original = Skeleton.loaded
    monkeypatch.setattr(
        Skeleton, "loaded", lambda self, index: (loaded.append(index), original(self, index))[1]
    )
    resumed = calibrate_checkpoint(path, TEXTS, **arguments)
    assert loaded == list(range(layers, 4))
    assert resumed.fingerprint == whole.fingerprint
    assert not (tmp_path / "work").exists()


def test_run_killed_within_a_layer_repeats_that_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states half written when a run was killed are not taken for whole ones."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=3)
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    run, calls = LayerRunner.run, []

    def stopping(self: LayerRunner, index: int, *tensors: Any) -> torch.Tensor:
        calls.append(index)
        if calls == [0, 0, 1, 1]:  # the second of two batches of the second layer
            raise _StopHere
        return run(self, index, *tensors)

    monkeypatch.setattr(LayerRunner, "run", stopping)
    with pytest.raises(_StopHere):
        calibrate_checkpoint(path, TEXTS, **arguments)
    assert (tmp_path / "work" / "states-0002.bin").stat().st_size > 0
    resumed = calibrate_checkpoint(path, TEXTS, **arguments)
    assert calls == [0, 0, 1, 1, 1, 1, 2, 2]
    whole = calibrate(path, char_tokenizer(), TEXTS, low_memory=False, **OPTIONS)
    assert resumed.fingerprint == whole.fingerprint


def test_work_folder_holds_one_layers_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers are done, the folder holds the hidden states behind the last one only."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4)
    _stop_after(monkeypatch, 3, before_manifest=True)
    with pytest.raises(_StopHere):
        _by_layers(path, tmp_path / "work", "frobenius")
    states = sorted(file.name for file in (tmp_path / "work").glob("states-*"))
    assert states == ["states-0003.bin"]
    assert (tmp_path / "work" / "states-0003.bin").stat().st_size == some_tokens().num_tokens * 32 * 4


def _interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    path = save_tiny(tmp_path, "qwen3_moe")
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, before_manifest=False)
        with pytest.raises(_StopHere):
            calibrate_checkpoint(path, TEXTS, **arguments)
    return path, arguments


def test_folder_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, texts or weights do not continue an interrupted run: the error names what differs."""
    path, arguments = _interrupted(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"with other settings: batch_size was 8, now 4; give the command"):
        calibrate_checkpoint(path, TEXTS, **(arguments | {"batch_size": 4}))
    with pytest.raises(InputError, match="with other settings: metrics was frobenius, now "):
        calibrate_checkpoint(path, TEXTS, metric="cosine", **arguments)
    with pytest.raises(InputError, match="with other settings: the texts or the tokenizer differ; give"):
        calibrate_checkpoint(path, TEXTS[1:], **arguments)
    shard = next(path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="with other settings: the checkpoint's files differ; give"):
        calibrate_checkpoint(path, TEXTS, **arguments)


def test_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    """A folder that holds something else is not written to."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").touch()
    with pytest.raises(InputError, match="expected an empty folder or one of an interrupted calibration"):
        WorkFolder(tmp_path / "work", {})


def test_damaged_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states cut short are not continued with: the error names sizes and what to do."""
    path, arguments = _interrupted(tmp_path, monkeypatch)
    states = next((tmp_path / "work").glob("states-*"))
    states.write_bytes(states.read_bytes()[:-4])
    with pytest.raises(
        InputError, match=r"expected 12800 bytes of hidden states, found 12796; delete the folder"
    ):
        calibrate_checkpoint(path, TEXTS, **arguments)


def test_path_chooses_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is loaded whole where it fits, goes layer by layer where it does not, and both are equal."""
    path = save_tiny(tmp_path, "mixtral")
    char_tokenizer().save_pretrained(path)
    passes: list[int] = []
    run = by_layers._Pass.run
    monkeypatch.setattr(
        by_layers._Pass, "run", lambda self, experts: (passes.append(1), run(self, experts))[1]
    )
    whole = calibrate(path, texts=TEXTS, **OPTIONS)
    assert not passes
    monkeypatch.setattr(memory, "_SHARE_OF_MEMORY", 0.0)
    layerwise = calibrate(path, texts=TEXTS, **OPTIONS)
    assert passes
    assert whole.fingerprint == layerwise.fingerprint
    assert whole.identity == layerwise.identity


def test_several_metrics_with_parameters(tmp_path: Path) -> None:
    """Several metrics come as a dict of tables, each with its parameters, in one walk."""
    path = save_tiny(tmp_path, "qwen3_moe")
    tables = calibrate_checkpoint(
        path, TEXTS, tokenizer=char_tokenizer(), metric=["cka", "weights"],
        metric_parameters={"cka": {"kernel": "rbf"}}, **OPTIONS,
    )  # fmt: skip
    assert tables["cka"].metric_parameters["kernel"] == "rbf"
    assert (tables["cka"].calibration_tokens, tables["weights"].calibration_tokens) == (100, 0)
    alone = calibrate_checkpoint(path, metric="weights", progress=False)
    assert alone.fingerprint == tables["weights"].fingerprint


def test_incomplete_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """A missing tensor, a damaged or missing shard: each error names it, before any layer is computed."""
    path = save_tiny(tmp_path, "qwen3_moe")
    shards = sorted(path.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"cannot be read as safetensors"):
        calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    shards[0].unlink()
    with pytest.raises(InputError, match=r"1 of \d+ weight files are missing: model-00001"):
        calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    shards[0].write_bytes(whole)
    drop(path, "layers.1.post_attention_layernorm")
    with pytest.raises(InputError, match=r"1 weight .*: model\.layers\.1\.post_attention_layernorm\.weight"):
        calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)


def test_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    """A quantized checkpoint is refused with the way out."""
    path = save_tiny(tmp_path, "qwen3_moe")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="calibrate the checkpoint from before quantization"):
        calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)


def test_layers_that_share_more_than_hidden_states_are_refused(tmp_path: Path) -> None:
    """A decoder layer that fills a shared collection, or returns further tensors, cannot be run by itself."""
    path = save_tiny(tmp_path, "qwen3_moe")
    for spoil, text in (
        (_fill_shared, "a collection that its decoder layers share"),
        (_replace_shared, "a collection that its decoder layers share"),
        (_read_shared, "a collection that its decoder layers share"),
        (_return_more, "further results"),
    ):
        skeleton = Skeleton(path)
        for layer in skeleton.layers:
            spoil(layer)
        work = WorkFolder(tmp_path / spoil.__name__, {})
        with pytest.raises(UnsupportedModel, match=text):
            collect_layerwise(skeleton, some_tokens(), settings("cosine"), work, states_in_memory=True)


def _fill_shared(layer: Any) -> None:
    forward, shared = layer.forward, []
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: list[Any], **kwargs: Any) -> Any:
        shared.append(hidden)
        return forward(hidden, **kwargs)

    layer.forward = spoiled


def _replace_shared(layer: Any) -> None:
    forward, shared = layer.forward, {"keys": None}
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: Any, **kwargs: Any) -> Any:
        shared["keys"] = hidden
        return forward(hidden, **kwargs)

    layer.forward = spoiled


def _read_shared(layer: Any) -> None:
    forward, shared = layer.forward, UserDict[str, Any]()
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"shared": shared}), with_kwargs=True
    )

    def spoiled(hidden: Any, *, shared: Any, **kwargs: Any) -> Any:
        before = shared.get("keys")
        return forward(hidden if before is None else hidden + before, **kwargs)

    layer.forward = spoiled


def _return_more(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: (forward(*args, **kwargs), torch.ones(2))


def test_a_model_that_loops_over_its_layers_is_refused(tmp_path: Path) -> None:
    """Its first loop alone would be measured: the layer and its number of runs are named."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    skeleton.layers.__class__ = Looping
    text = r"decoder layer 0 3 times; expected once.*low_memory=False"
    with pytest.raises(UnsupportedModel, match=text), resumable(tmp_path / "work", {}, total=2) as work:
        collect_layerwise(skeleton, some_tokens(), settings("cosine"), work, states_in_memory=True)


def test_layers_that_get_what_follows_from_earlier_hidden_states_are_refused(tmp_path: Path) -> None:
    """An argument made of an earlier layer's hidden states would be that of the embeddings instead."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    first, second = skeleton.layers
    seen: list[Any] = []
    first.register_forward_hook(lambda *call: seen.append(call[-1]))
    second.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"residual": seen[-1]}), with_kwargs=True
    )
    work = WorkFolder(tmp_path / "work", {})
    with pytest.raises(UnsupportedModel, match="hands on arguments of decoder layer 1; expected"):
        collect_layerwise(skeleton, some_tokens(), settings("cosine"), work, states_in_memory=True)


def _rewrite(path: Path, change: Any) -> None:
    """Replace a checkpoint's shards by one file of changed tensors."""
    named: dict[str, torch.Tensor] = {}
    for shard in path.glob("*.safetensors"):
        named |= load_file(shard)
        shard.unlink()
    (path / "model.safetensors.index.json").unlink()
    change(named)
    save_file(named, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_embeddings_are_found_under_either_name(name: str, tmp_path: Path) -> None:
    """A checkpoint may hold tied embeddings as those of the input or of the output head."""
    path = save_tiny(tmp_path, "qwen3_moe", tie_word_embeddings=True)
    saved = "model.embed_tokens.weight"
    _rewrite(path, lambda named: named.update({name: named.pop(saved)}))
    assert worst(_by_layers(path, tmp_path / "work", "frobenius"), _whole(path, "frobenius")) == 0
    skeleton = Skeleton(path)
    skeleton.load_rest()
    assert not skeleton.model.get_input_embeddings().weight.is_meta
    assert skeleton.model.get_output_embeddings().weight.is_meta


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_weights_beside_the_layers_that_are_missing_are_named(name: str, tmp_path: Path) -> None:
    """Embeddings or a norm that the checkpoint lacks are an error with their name."""
    path = save_tiny(tmp_path, "qwen3_moe")
    _rewrite(path, lambda named: named.pop(name))
    with pytest.raises(InputError, match=rf"1 weight of the model is not in it: {name}"):
        calibrate_checkpoint(path, TEXTS, tokenizer=char_tokenizer(), **OPTIONS)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: lambda _, args: (head(args[0])[..., :32],),
        lambda head: lambda _, args: (args[0] + head.weight[:32, :32].sum().item(),),
    ],
    ids=["hidden states without values", "an error of PyTorch's"],
)
def test_weights_elsewhere_that_the_pass_needs_are_named(tmp_path: Path, spoil: Any) -> None:
    """A forward pass that needs what stands outside the decoder layers' parent is refused by name."""
    skeleton = Skeleton(save_tiny(tmp_path, "qwen3_moe"))
    head = skeleton.model.lm_head
    skeleton.layers[0].register_forward_pre_hook(spoil(head))
    work = WorkFolder(tmp_path / "work", {})
    with pytest.raises(UnsupportedModel, match=r"needs weights .* \(lm_head.weight\).*low_memory=False"):
        collect_layerwise(skeleton, some_tokens(), settings("cosine"), work, states_in_memory=True)


def test_missing_texts_are_named(tmp_path: Path) -> None:
    """Without texts the error comes before any weight is read."""
    with pytest.raises(DataError, match="texts: expected a source, got none"):
        calibrate_checkpoint(save_tiny(tmp_path, "qwen3_moe"), tokenizer=char_tokenizer(), **OPTIONS)
