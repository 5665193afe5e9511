"""Carry vLLM to a machine without a network: pack the parts that a run needs, unpack them there.

    python3 -m pip list --format=freeze > present.txt                        # there
    python3 benchmarks/vllm_pieces.py pack --present present.txt              # here: .pieces/piece-00.zip ...
    python3 benchmarks/vllm_pieces.py unpack .pieces/piece-00.zip --into /tmp/site   # there, piece by piece
    make gpu-serve PYTHONPATH=/tmp/site                                      # there

vLLM's wheel goes without the libraries that a bfloat16 MoE on Hopper never loads; of the packages it asks
for, those that are not there come along, except large ones that only other models need. sere's own wheel
comes too: its metadata is how vLLM finds the plug-in. vLLM 0.20 to 0.26 belong to torch 2.11.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VLLM = "0.25.1"
PIECE_BYTES = 58_000_000
PYTHON = "3.12"
DROPPED = ("vllm/vllm_flash_attn/_vllm_fa2_C*", "vllm/vllm-rs", "*/tests/*", "*.dist-info/RECORD")
# Other models', other cards' or the machine's own; vLLM runs a bfloat16 MoE without them.
WITHOUT = {
    "torch", "torchvision", "torchaudio", "torchcodec", "pynvvideocodec", "flashinfer-python",
    "flashinfer-cubin", "tilelang", "nvidia-cutlass-dsl", "quack-kernels", "tokenspeed-mla",
    "humming-kernels", "fastsafetensors", "nvidia-cudnn-frontend", "opencv-python-headless", "numba",
    "triton", "numpy", "setuptools",
}  # fmt: skip
# Where the newest version that vLLM's own bounds allow does not go with another package that it pins.
PINNED = {"xgrammar": "xgrammar==0.2.1"}
MARKERS = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.3", "sys_platform": "linux",
           "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": "",
           "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip


def canonical(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download(requirement: str, folder: Path) -> Path:
    """Fetch one wheel for the other machine's Python, without what it asks for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--abi", f"cp{PYTHON.replace('.', '')}"]
    command += ["--abi", "abi3", "--abi", "none", "--dest", str(folder / canonical(requirement))]
    for glibc in (17, 24, 27, 28, 31, 34, 35):
        command += ["--platform", f"manylinux_2_{glibc}_x86_64"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64", "--platform", "any"]
    subprocess.run([*command, requirement], check=True)
    return next((folder / canonical(requirement)).glob("*.whl"))


def requirements(wheel: Path) -> Iterator[str]:
    """Yield what a wheel asks for on the other machine, as names with versions."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    for line in lines:
        if line.startswith("Requires-Dist: "):
            needed = Requirement(line.removeprefix("Requires-Dist: "))
            if needed.marker is None or needed.marker.evaluate(MARKERS):
                yield f"{needed.name}{needed.specifier}"


def gather(vllm: str, present: set[str], folder: Path) -> list[Path]:
    """Return vLLM's wheel and those of the missing packages, found by walking what each asks for."""
    wheels, waiting, seen = [], [f"vllm=={vllm}"], set(present) | WITHOUT
    while waiting:
        requirement = waiting.pop(0)
        name = canonical(re.split(r"[<>=!~]", requirement)[0])
        if name in seen:
            continue
        seen.add(name)
        wheels.append(download(PINNED.get(name, requirement), folder))
        print(f"{wheels[-1].name}: {wheels[-1].stat().st_size / 1e6:.1f} MB", flush=True)
        waiting += requirements(wheels[-1])
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder / "sere")]
    subprocess.run([*command, str(ROOT)], check=True)
    return [*wheels, *(folder / "sere").glob("*.whl")]


def members(wheels: list[Path]) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Yield the files to carry, largest first, so that they share pieces well."""
    found = []
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        for info in archive.infolist():
            if not info.is_dir() and not any(fnmatch(info.filename, pattern) for pattern in DROPPED):
                found.append((archive, info))
    yield from sorted(found, key=lambda pair: -pair[1].compress_size)


def pack(vllm: str, present: Path, out: Path) -> None:
    """Write ``out/piece-NN.zip``, each of at most ``PIECE_BYTES``."""
    names = {canonical(re.split(r"[ =@]", line)[0]) for line in present.read_text().splitlines() if line}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pieces: list[list[tuple[zipfile.ZipFile, zipfile.ZipInfo]]] = []
        room: list[int] = []
        for archive, info in members(gather(vllm, names, Path(folder))):
            size = info.compress_size + 300  # the entry's own header
            place = next((i for i, left in enumerate(room) if left >= size), len(room))
            if place == len(room):
                pieces.append([])
                room.append(PIECE_BYTES)
            pieces[place].append((archive, info))
            room[place] -= size
        for number, chosen in enumerate(pieces):
            path = out / f"piece-{number:02}.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as piece:
                for archive, info in chosen:
                    name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", info.filename)
                    piece.writestr(name, archive.read(info))
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(chosen)} files")


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description="Carry vLLM to a machine without a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="where the network is")
    packing.add_argument("--vllm", default=VLLM)
    packing.add_argument(
        "--present", type=Path, required=True, help="pip list --format=freeze of the machine"
    )
    packing.add_argument("--out", type=Path, default=Path(".pieces"))
    unpacking = commands.add_parser("unpack", help="where the GPU is")
    unpacking.add_argument("pieces", type=Path, nargs="+")
    unpacking.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.vllm, arguments.present, arguments.out)
        return
    for piece in arguments.pieces:
        with zipfile.ZipFile(piece) as archive:
            archive.extractall(arguments.into)
            print(f"{piece}: {len(archive.namelist())} files into {arguments.into}")


if __name__ == "__main__":
    main()
