"""How the kernel's source becomes machine code, and where that is kept; without a device."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import BackendUnavailable
from sere.files import others_can_write
from sere.reroute.backends.cuda import compiler, device
from sere.reroute.backends.cuda.launch import SOURCE, entries
from sere.warn_once import WarnOnce
from tests.support.cuda_host import forget_kernels, pretend_core, pretend_device
from tests.support.shim.driver import HAS_CUDA_CORE, NO_CUDA_CORE

pytestmark = pytest.mark.usefixtures("forgetful")

with_cuda_core = pytest.mark.skipif(not HAS_CUDA_CORE, reason=NO_CUDA_CORE)
ENTRY, OTHER = "reroute_int32_float32", "reroute_int64_bfloat16"


def test_a_damaged_file_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Machine code that the driver refuses is deleted and compiled once more; a second refusal is the end."""

    def load(code: bytes) -> Any:
        if code != b"good":
            raise RuntimeError("no image")
        return SimpleNamespace(get_kernel=lambda entry: entry)

    pretend_device(monkeypatch)
    pretend_core(monkeypatch, ObjectCode=SimpleNamespace(from_cubin=load))
    monkeypatch.setattr(device, "cubin", compiler.cubin)
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"good")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    compiler.cubin("sm_93", ENTRY)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"bad")
    assert device.kernel_of(3, ENTRY) == ENTRY
    assert file.read_bytes() == b"good"
    forget_kernels()
    file.write_bytes(b"bad")
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"bad again")
    text = "int32 ids and float32 weights on cuda:3: RuntimeError: no image; choose backend='triton'"
    with pytest.raises(BackendUnavailable, match=text):
        device.kernel_of(3, ENTRY)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``SERE_CACHE_DIR`` goes before ``XDG_CACHE_HOME``, that before the home folder."""
    monkeypatch.delenv("SERE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert compiler.cache_folder() == Path.home() / ".cache" / "sere"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / "sere"
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "mine"))
    assert compiler.cache_folder() == tmp_path / "mine"


def test_compiled_once_per_entry_and_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second call reads the file; another entry, architecture or source compiles anew."""
    calls: list[str] = []

    def compile_source(arch: str, entry: str) -> bytes:
        calls.append(arch)
        return f"{entry} for {arch}, {len(calls)}".encode()

    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "compile_source", compile_source)
    first = f"{ENTRY} for sm_90, 1".encode()
    assert compiler.cubin("sm_90", ENTRY) == compiler.cubin("sm_90", ENTRY) == first
    assert compiler.cubin("sm_80", ENTRY) == f"{ENTRY} for sm_80, 2".encode()
    assert compiler.cubin("sm_90", OTHER) == f"{OTHER} for sm_90, 3".encode()
    assert compiler.cubin("sm_90", ENTRY) == first
    names = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir())
    assert names == sorted([f"{ENTRY}-sm_80", f"{ENTRY}-sm_90", f"{OTHER}-sm_90"])
    monkeypatch.setattr(compiler, "source_text", lambda _: "another source")
    assert compiler.cubin("sm_90", ENTRY) == f"{ENTRY} for sm_90, 4".encode()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The code is compiled and used all the same."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"code")
    assert compiler.cubin("sm_90", ENTRY) == b"code"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720], ids=lambda mode: f"{mode:o}")
def test_a_cache_that_others_can_write(
    mode: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Code that somebody else may have put there does not run on the GPU, and none is left there."""
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"code")
    monkeypatch.setattr(compiler, "warn_once", WarnOnce(logging.getLogger("sere")))
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert compiler.cubin("sm_90", ENTRY) == b"code"
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"evil")
    assert compiler.cubin("sm_90", ENTRY) == b"evil"
    tmp_path.chmod(mode)
    assert compiler.cubin("sm_90", ENTRY) == compiler.cubin("sm_90", ENTRY) == b"code"
    assert compiler.cubin("sm_80", ENTRY) == b"code"
    assert [*tmp_path.iterdir()] == [kept]
    assert [line for line in caplog.messages if "others may write to it" in line] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_cache_of_another_user(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder, or a file in one's own folder, that belongs to somebody else is not read."""
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"code")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    compiler.cubin("sm_90", ENTRY)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"evil")
    of_others = tmp_path if what == "folder" else kept
    seen = others_can_write
    monkeypatch.setattr(
        compiler, "others_can_write", lambda path: "it is of another" if path == of_others else seen(path)
    )
    assert compiler.cubin("sm_90", ENTRY) == b"code"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=lambda umask: f"{umask:o}")
def test_a_new_cache_is_for_its_user_alone(
    umask: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Folder and file are made so that only their user can write, whatever the umask, and are then used."""
    codes = iter([b"first", b"second"])
    monkeypatch.setattr(compiler, "compile_source", lambda *_: next(codes))
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "new"))
    before = os.umask(umask)
    try:
        assert compiler.cubin("sm_90", ENTRY) == compiler.cubin("sm_90", ENTRY) == b"first"
    finally:
        os.umask(before)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder can be named the code is compiled and used, not kept."""

    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("SERE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(compiler, "compile_source", lambda *_: b"code")
    assert compiler.cubin("sm_90", ENTRY) == b"code"
    assert compiler.forget("sm_90", ENTRY) is False


def test_source_is_one_text() -> None:
    """What NVRTC gets has every header of ours once, and asks for none of its own."""
    text = compiler.source_text()
    assert "#include" not in text
    for header in SOURCE.parent.glob("*.cuh"):
        body = [line for line in header.read_text().splitlines() if line and not line.startswith("#include")]
        assert text.count(body[0]) == 1
        assert text.count(body[-2]) >= 1


def test_lines_keep_their_files_and_numbers() -> None:
    """Errors, sanitizers and profilers name a line of a file that is there, not of the one text."""
    place, number, found = "", 0, 0
    for line in compiler.source_text().splitlines():
        said = re.match(r'#line (\d+) "(.+)"', line)
        if said is not None:
            place, number = said[2], int(said[1])
            continue
        written = (SOURCE.parent / place).read_text().splitlines()[number - 1]
        assert line == written, f"{place}:{number}"
        number, found = number + 1, found + 1
    includes = 4
    total = sum(len(path.read_text().splitlines()) for path in [SOURCE, *SOURCE.parent.glob("*.cuh")])
    assert found == total - includes


@with_cuda_core
def test_an_error_is_named_with_its_own_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NVRTC says which line of which header is wrong."""
    shutil.copytree(SOURCE.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py"))
    header = tmp_path / "phases.cuh"
    lines = header.read_text().splitlines()
    header.write_text("\n".join([*lines, "#error wrong"]) + "\n")
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / SOURCE.name)
    with pytest.raises(Exception, match=rf"phases\.cuh\({len(lines) + 1}\): .*wrong"):
        compiler.compile_source("sm_90", ENTRY)


def entries_of(text: str) -> list[str]:
    """The entries that a source asks for."""
    return re.findall(r"^SERE_ENTRY\((\w+),", text, re.MULTILINE)


def test_one_entry_alone_is_compiled() -> None:
    """NVRTC gets one entry of the source if one is wanted, with every other line in its place."""
    whole = compiler.source_text()
    for entry in entries():
        text = compiler.source_text(entry)
        assert entries_of(text) == [entry]
        lines = list(zip(text.split("\n"), whole.split("\n"), strict=True))
        assert sum(mine != theirs for mine, theirs in lines) == len(entries()) - 1


@with_cuda_core
def test_nvrtc_compiles_the_source() -> None:
    """NVRTC itself, through cuda-core, makes machine code with the entry that is wanted, without a device."""
    code = compiler.compile_source("sm_90", OTHER)
    assert code[:4] == b"\x7fELF"
    assert [entry for entry in entries() if entry.encode() in code] == [OTHER]
