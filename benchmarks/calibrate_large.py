"""Peak memory of calibrating a checkpoint that is larger than memory should be.

Writes a random bfloat16 checkpoint of Qwen3-30B-A3B's layer shape, with as many layers as fit the given size
and one tensor per expert matrix, like published checkpoints. Calibrates it layer by layer in a separate
process; prints and records that process's peak resident memory and time.

    python benchmarks/calibrate_large.py                                   # 15 GB
    python benchmarks/calibrate_large.py --gb 1.5 --experts 16 --vocab 8192
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sere.files import append_json_line, write_json
from sere.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "calibrate_large.jsonl"
TARGET_BYTES = 4 * 10**9
_H, _WIDTH, _K, _HEADS, _KV_HEADS, _HEAD_DIM = 2048, 768, 8, 32, 4, 128
_POOL = 2**25


class ByteTokenizer:
    """One token per byte: the checkpoint is random, so any ids do."""

    eos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the bytes of ``text`` as ids; options of a real tokenizer are taken and ignored."""
        return {"input_ids": list(text.encode())}


def layer_shapes(E: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one decoder layer, named as in a published Qwen3-MoE checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (_H,),
        "post_attention_layernorm.weight": (_H,),
        "self_attn.q_proj.weight": (_HEADS * _HEAD_DIM, _H),
        "self_attn.k_proj.weight": (_KV_HEADS * _HEAD_DIM, _H),
        "self_attn.v_proj.weight": (_KV_HEADS * _HEAD_DIM, _H),
        "self_attn.o_proj.weight": (_H, _HEADS * _HEAD_DIM),
        "self_attn.q_norm.weight": (_HEAD_DIM,),
        "self_attn.k_norm.weight": (_HEAD_DIM,),
        "mlp.gate.weight": (E, _H),
    }
    for e in range(E):
        shapes[f"mlp.experts.{e}.gate_proj.weight"] = (_WIDTH, _H)
        shapes[f"mlp.experts.{e}.up_proj.weight"] = (_WIDTH, _H)
        shapes[f"mlp.experts.{e}.down_proj.weight"] = (_H, _WIDTH)
    return shapes


def all_shapes(E: int, layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return all tensors of the checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, _H)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer_shapes(E).items()}
    return shapes | {"model.norm.weight": (_H,), "lm_head.weight": (vocab, _H)}


def layers_for(num_bytes: float, E: int, vocab: int) -> int:
    """Return how many layers make a checkpoint of about ``num_bytes``."""
    rest = 2 * 2 * vocab * _H
    layer = 2 * sum(math.prod(shape) for shape in layer_shapes(E).values())
    return max(1, round((num_bytes - rest) / layer))


def write_checkpoint(folder: Path, *, E: int, layers: int, vocab: int, shard_bytes: int) -> int:
    """Write the checkpoint, one tensor in memory at a time.

    Returns:
        Bytes of its weights.
    """
    shards = list(_shards(all_shapes(E, layers, vocab), shard_bytes))
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(_POOL, generator=generator) * 0.04).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as stream:
            total += _write_shard(stream, shapes, pool, generator)
        weight_map |= dict.fromkeys(shapes, file)
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    _config(E, layers, vocab).save_pretrained(folder)
    return total


def _config(E: int, layers: int, vocab: int) -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16", hidden_size=_H, moe_intermediate_size=_WIDTH,
        intermediate_size=3 * _H, num_hidden_layers=layers, num_attention_heads=_HEADS, head_dim=_HEAD_DIM,
        num_key_value_heads=_KV_HEADS, num_experts=E, num_experts_per_tok=min(_K, E), norm_topk_prob=True,
        vocab_size=vocab, tie_word_embeddings=False, rope_theta=1e6, max_position_embeddings=4096,
    )  # fmt: skip


def _shards(shapes: dict[str, tuple[int, ...]], limit: int) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        if shard and size + 2 * math.prod(shape) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += 2 * math.prod(shape)
    yield shard


def _write_shard(
    stream: IO[bytes], shapes: dict[str, tuple[int, ...]], pool: Tensor, generator: torch.Generator
) -> int:
    """Write the safetensors format by hand: its library wants a whole shard in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            _write(stream, torch.ones(shape, dtype=torch.bfloat16))
        else:
            _write_random(stream, math.prod(shape), pool, generator)
    return end


def _write_random(stream: IO[bytes], count: int, pool: Tensor, generator: torch.Generator) -> None:
    # Pieces of one pool from random places: as good as independent, and as fast as the disk.
    while count:
        start = int(torch.randint(_POOL // 2, (1,), generator=generator))
        piece = pool[start : start + min(count, _POOL // 2)]
        _write(stream, piece)
        count -= piece.numel()


def _write(stream: IO[bytes], tensor: Tensor) -> None:
    stream.write(memoryview(tensor.view(torch.int16).numpy()))  # type: ignore[arg-type]


def child(args: argparse.Namespace) -> None:
    """Calibrate ``args.child`` and print one JSON line: peak resident bytes and seconds."""
    from sere.calibrate import calibrate

    imported = _peak_bytes()
    start = time.perf_counter()
    texts = ["The quick brown fox jumps over the lazy dog. " * 400] * 20
    table = calibrate(
        args.child, ByteTokenizer(), texts,
        max_tokens=args.tokens, seq_len=128, progress="always", low_memory=True,
    )  # fmt: skip
    measured = {
        "peak_rss_bytes": _peak_bytes(),
        "rss_after_import_bytes": imported,
        "seconds": round(time.perf_counter() - start, 1),
        "layers_calibrated": len(table.layers),
        "fingerprint": table.fingerprint,
    }
    print(json.dumps(measured))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the checkpoint and calibrate it in a child process; return the record."""
    layers = layers_for(args.gb * 1e9, args.experts, args.vocab)
    size = write_checkpoint(
        folder, E=args.experts, layers=layers, vocab=args.vocab, shard_bytes=int(args.shard_gb * 1e9)
    )
    print(f"checkpoint: {size / 1e9:.2f} GB, {layers} layers of {args.experts} experts", file=sys.stderr)
    command = [sys.executable, __file__, "--child", str(folder), "--tokens", str(args.tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    config = {"checkpoint_bytes": size, "layers": layers, "E": args.experts, "K": min(_K, args.experts)}
    config |= {
        "H": _H,
        "expert_width": _WIDTH,
        "vocab": args.vocab,
        "dtype": "bfloat16",
        "tokens": args.tokens,
    }
    return {
        "benchmark": "calibrate_large",
        "unit": "bytes resident at peak; seconds",
        "config": config,
        **json.loads(done.stdout),
        "target_bytes": TARGET_BYTES,
        "provenance": provenance(),
    }


def main() -> int:
    """Run the benchmark; 1 where the peak is above the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=15.0, help="size of the checkpoint in 10^9 bytes")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shard-gb", type=float, default=4.0)
    parser.add_argument(
        "--dir", help="where the checkpoint goes for the time being (default: a temporary folder)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        record = measure(args, Path(folder))
    append_json_line(RESULTS, record)
    peak, size = record["peak_rss_bytes"], record["config"]["checkpoint_bytes"]
    print(f"{size / 1e9:.2f} GB checkpoint: peak {peak / 1e9:.2f} GB resident, {record['seconds']:.0f} s")
    return 0 if peak <= TARGET_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
