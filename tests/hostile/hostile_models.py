"""Hostile weights, locks of weights, model files and MATLAB files: read by the readers that meet them."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from helpers.damage import put
from hostile.hostile_case import Case, How, Trap, mark, reader, trap
from hostile.hostile_tables import DEEP, beside

from bidsapp.config import load_recipe
from bidsapp.decoding import model_file
from bidsapp.models.judges.protocol_networks import load_network
from bidsapp.models.weights.checkpoints import load_component, load_tokenizer, read_checkpoint
from bidsapp.models.weights.configurations import AUTOKL
from bidsapp.models.weights.lock import LOCK
from bidsapp.models.weights.registry import generative_files
from bidsapp.models.weights.verification import verify
from bidsapp.nsd.design import read_design

WEIGHTS = "vdvae-imagenet64/imagenet64-iter-1600000-model-ema.th"


def made(name: str, content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda tmp: put(tmp / name, content())


def checkpoint(name: str) -> How:
    return reader(lambda tmp: read_checkpoint(tmp / name))


def component(tmp: Path) -> object:
    return load_component(dict, tmp / "m", AUTOKL)


def network(tmp: Path) -> object:
    return load_network("alexnet", tmp / "w.pth")


def verified(tmp: Path) -> object:
    needed = [n for n in generative_files(load_recipe("brain-diffuser")) if n.file.names[-1] in WEIGHTS]
    assert needed
    return verify(needed, tmp / "m")


def saved(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def trapped(name: str, *, zipped: bool) -> Callable[[Path], object]:
    return lambda tmp: put(tmp / name, saved({"w": Trap(mark(tmp))}, zipped=zipped))


def deflated() -> bytes:
    """A torch file of 64 MB of zeros whose zip is compressed to a thousandth."""
    stream = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1 << 24)})))
    with source, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return stream.getvalue()


def overlapping() -> bytes:
    """A torch file whose directory lists one entry a thousand times."""
    whole = saved({"w": torch.zeros(1 << 16)})
    start, count = whole.index(b"PK\1\2"), 1000
    end = whole.rindex(b"PK\5\6")
    names = zipfile.ZipFile(io.BytesIO(whole)).infolist()
    largest = max(range(len(names)), key=lambda i: names[i].file_size)
    places = [i for i in range(start, end) if whole[i : i + 4] == b"PK\1\2"] + [end]
    entry = whole[places[largest] : places[largest + 1]].split(b"PK\6\6")[0]
    directory = whole[start : places[len(names)] if len(places) > len(names) else end].split(b"PK\6\6")[0]
    directory += entry * count
    n = len(names) + count
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, n, n, len(directory), start, 0)
    return whole[:start] + directory + tail


def pickled(name: str) -> Callable[[Path], object]:
    return lambda tmp: put(tmp / name, trap(tmp))


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(64)


def declared(shape: list[int], end: int) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def folder_of(**files: bytes | str) -> Callable[[Path], object]:
    def make(tmp: Path) -> None:
        (tmp / "m").mkdir()
        for name, content in files.items():
            put(tmp / "m" / name.replace("__", "."), content)

    return make


def locked(content: bytes | str) -> Callable[[Path], object]:
    def make(tmp: Path) -> None:
        (tmp / "m" / WEIGHTS).parent.mkdir(parents=True)
        put(tmp / "m" / WEIGHTS, b"weights")
        put(tmp / "m" / LOCK, content)

    return make


def element(kind: int, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack("<II", kind, size) + content + bytes(-len(content) % 8)


def matlab_bomb() -> bytes:
    """``masterordering``, five numbers, whose data inflate to 3.7 GB (MAT-File Format, version 5)."""
    names = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 1, 5))
    names += element(1, b"masterordering")
    zeros, n = bytes(1 << 24), 224
    packer = zlib.compressobj(9)
    start = struct.pack("<II", 14, len(names) + 8 + n * len(zeros)) + names
    start += struct.pack("<II", 9, n * len(zeros))
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += block * n  # each block stands alone
    return MATLAB + element(15, packed)


MATLAB = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
VERIFIED = reader(verified)
DESIGN = reader(lambda tmp: read_design(tmp / "design.mat"))
MODEL = reader(lambda tmp: model_file.load(tmp / "model.h5"))
RAN = "perhaps code; none of it was run"


def linked_model(tmp: Path) -> None:
    with h5py.File(tmp / "model.h5", "w") as file:
        for name in ("voxels", "factors", "targets", "mean"):
            file[name] = h5py.ExternalLink("/etc/passwd", f"/{name}")


def pickled_model(tmp: Path) -> None:
    with h5py.File(tmp / "model.h5", "w") as file:
        file.attrs["settings"] = np.void(trap(tmp))
        file["voxels"] = np.void(trap(tmp))


CASES = {
    # checkpoints
    "torch file with code": Case(65, RAN, trapped("w.pt", zipped=True), checkpoint("w.pt")),
    "torch file of old with code": Case(65, RAN, trapped("w.th", zipped=False), checkpoint("w.th")),
    "bare pickle as weights": Case(65, RAN, pickled("w.pth"), checkpoint("w.pth")),
    "pickle named safetensors": Case(
        65, "cannot be read", pickled("w.safetensors"), checkpoint("w.safetensors")
    ),
    "torch file that inflates": Case(65, "is compressed", made("w.pt", deflated), checkpoint("w.pt")),
    "torch file of one entry a thousand times": Case(
        65, "more data than it holds", made("w.pt", overlapping), checkpoint("w.pt")
    ),
    "tensor of 4 TB in a kilobyte": Case(
        65, "of another shape",
        beside("w.pth", saved({"features.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)})),
        reader(network),
    ),
    "safetensors with a header of 4 exabytes": Case(
        65, "cannot be read", beside("w.safetensors", safetensors(b"{}", 1 << 62)),
        checkpoint("w.safetensors")
    ),
    "safetensors of more than it holds": Case(
        65, "cannot be read", beside("w.safetensors", safetensors(declared([1 << 40], 1 << 42))),
        checkpoint("w.safetensors"),
    ),
    "safetensors whose shape overflows": Case(
        65, "cannot be read", beside("w.safetensors", safetensors(declared([1 << 33, 1 << 33], 64))),
        checkpoint("w.safetensors"),
    ),
    "weights divided by an index that leads out": Case(
        65, "are not supported",
        folder_of(
            config__json="{}",
            model__safetensors__index__json='{"weight_map": {"w": "../../../etc/passwd"}}',
        ),
        reader(component),
    ),
    "model's settings of 200,000 brackets": Case(
        65, "cannot be read as JSON", folder_of(config__json=DEEP), reader(component)
    ),
    "model's settings that are a pipe": Case(
        65, "a pipe", lambda tmp: [(tmp / "m").mkdir(), os.mkfifo(tmp / "m" / "config.json")],
        reader(component),
    ),
    "model's settings that name code": Case(
        65, "names code", folder_of(config__json='{"a": {"auto_map": {"AutoModel": "code.Model"}}}'),
        reader(component),
    ),
    "model of 100,000 layers": Case(
        65, "layers_per_block is 100000", folder_of(config__json='{"layers_per_block": 100000}'),
        reader(component),
    ),
    "tokenizer that pads to two billion": Case(
        65, "Fixed is 2000000000",
        folder_of(
            tokenizer_config__json="{}",
            tokenizer__json='{"padding": {"strategy": {"Fixed": 2000000000}}, "model": {}}',
        ),
        reader(lambda tmp: load_tokenizer(tmp / "m")),
    ),
    # the lock
    "weights that were exchanged": Case(
        65, "not the weights that were recorded",
        locked(json.dumps({"files": {WEIGHTS: {"sha256": "0" * 64}}, "canaries": {}})), VERIFIED,
    ),
    "lock without hashes": Case(65, "not what the app writes", locked('{"files": {"a": 1}}'), VERIFIED),
    "lock with a hash that is a list": Case(
        65, "not what the app writes",
        locked(json.dumps({"files": {WEIGHTS: {"sha256": [1, 2]}}})), VERIFIED,
    ),
    "lock of null": Case(65, "must hold a JSON object", locked("null"), VERIFIED),
    "lock whose hash is null": Case(
        65, "not what the app writes", locked(json.dumps({"files": {WEIGHTS: {"sha256": None}}})), VERIFIED
    ),
    "lock whose answer is null": Case(
        65, "not what the app writes", locked('{"canaries": {"a#b": {"device": "cpu", "values": null}}}'),
        VERIFIED,
    ),
    "lock of 200,000 brackets": Case(65, "cannot be read as JSON", locked(DEEP), VERIFIED),
    # the app's own model file
    "model file that is a pickle": Case(65, "is not HDF5", pickled("model.h5"), MODEL),
    "model file that leads elsewhere": Case(65, "model.h5", linked_model, MODEL),
    "model file of pickles": Case(65, "model.h5", pickled_model, MODEL),
    # NSD's design
    "design that is a pickle": Case(65, "not a readable MATLAB", pickled("design.mat"), DESIGN),
    "design that inflates": Case(65, "inflates to more", made("design.mat", matlab_bomb), DESIGN),
    "design of nothing": Case(65, "has no variable", beside("design.mat", MATLAB), DESIGN),
}  # fmt: skip
