"""Hostile images and arrays: bombs, headers that lie, files that keep their data elsewhere."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from helpers.damage import edit, put
from hostile.hostile_case import BETAS, BETAS_HDF5, IMAGE, MASK, SIDECAR, STIMULI, Case, trap
from hostile.hostile_tables import endless, on, pipe, sparse
from PIL import Image

SHAPE = (6, 7, 9, 8)  # (trials, z, y, x) of the good betas
HUGE, WIDE = (6, 700, 700, 200), (1, 1 << 20, 1 << 20, 3)
BRICK = "stimuli/bricks.hdf5"
MEMBER = 1 << 24


def zeros(n_bytes: int) -> bytes:
    """A gzip file of so many zeros, in members of 16 MB: a thousandth of their size."""
    member, rest = gzip.compress(bytes(MEMBER), 9, mtime=0), n_bytes % MEMBER
    return member * (n_bytes // MEMBER) + gzip.compress(bytes(rest), 9, mtime=0)


def header(path: Path, **fields: object) -> bytes:
    """The header of a NIfTI file with other values, to the first byte of its data."""
    raw = gzip.decompress(path.read_bytes())[:352]
    record = nib.Nifti1Header(raw[:348])
    for name, value in fields.items():
        record[name] = value
    return bytes(record.binaryblock) + raw[348:]


def body_without_end(path: Path) -> None:
    """The data as they are, then 8 GB more."""
    put(path, path.read_bytes() + zeros(8 << 30))


def extension_of_two_gigabytes(path: Path) -> None:
    start = header(path)[:348] + b"\1\0\0\0" + struct.pack("<ii", (1 << 31) - 16, 6)
    put(path, gzip.compress(start) + zeros(3 << 30))


def data_far_behind(path: Path) -> None:
    put(path, gzip.compress(header(path, vox_offset=2.0**31)) + zeros(1 << 30))


def mask_of_a_huge_shape(path: Path) -> None:
    """A mask of 8 GB that are really there."""
    dim = [3, 2000, 2000, 2000, 1, 1, 1, 1]
    put(path, gzip.compress(header(path, dim=dim)) + zeros(2000**3))


def shape_beyond(path: Path) -> None:
    put(path, gzip.compress(header(path, dim=[4, 32767, 32767, 32767, 32767, 1, 1, 1])))


def second_file(path: Path) -> None:
    """A header that says that its data are in another file."""
    put(path, gzip.compress(header(path)[:344] + b"ni1\0" + bytes(64)))


def in_hdf5(name: str, fill: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    """The betas (or the brick of images) as an HDF5 file."""

    def make(tmp: Path) -> None:
        if name == BETAS_HDF5:
            (tmp / "bids" / BETAS).unlink()
            put(tmp / "bids" / SIDECAR, '{"ScaleFactor": 300}')
        else:
            change = lambda t: t.replace("stim-pic000_image.png\tn/a", "bricks.hdf5\t0")  # noqa: E731
            edit(tmp / "bids" / STIMULI, change)
        with h5py.File(tmp / "bids" / name, "w") as file:
            fill(file)

    return make


def external_storage(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[h5py.File], object]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return lambda f: f.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, size)])


def virtual(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[h5py.File], object]:
    def fill(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
        layout[...] = h5py.VirtualSource("/etc/shadow.h5", "x", shape=shape)
        file.create_virtual_dataset(name, layout)

    return fill


def linked(file: h5py.File) -> None:
    file["betas"] = h5py.ExternalLink("/etc/passwd", "/betas")


def soft_loop(file: h5py.File) -> None:
    file["betas"] = h5py.SoftLink("/a")
    file["a"] = h5py.SoftLink("/betas")


def group_of_itself(file: h5py.File) -> None:
    file.create_group("betas")["betas"] = file["/"]


def unknown_filter(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[h5py.File], object]:
    """Chunks that only a plugin could read: HDF5 would look for its library on the disk."""

    def fill(file: h5py.File) -> None:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk(shape)
        creation.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (1,))
        kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
        array = h5py.h5d.create(file.id, name.encode(), kind, space, creation)
        array.write_direct_chunk((0,) * len(shape), bytes(1000))

    return fill


def declared(shape: tuple[int, ...], **how: Any) -> Callable[[h5py.File], object]:
    return lambda f: f.create_dataset("betas", shape, "i2", **how)


def pickled_values(tmp: Path) -> None:
    kind = np.dtype(f"V{len(trap(tmp))}")
    values = np.full(SHAPE, np.void(trap(tmp)), kind)
    in_hdf5(BETAS_HDF5, lambda f: f.create_dataset("betas", data=values))(tmp)


def pickled_attribute(tmp: Path) -> None:
    """An attribute as pytables writes it, on an array that is of the wrong shape."""

    def fill(file: h5py.File) -> None:
        file.create_dataset("betas", data=np.zeros((5, *SHAPE[1:]), "i2")).attrs["x"] = np.void(trap(tmp))

    in_hdf5(BETAS_HDF5, fill)(tmp)


def encoded_brick(content: bytes) -> Callable[[h5py.File], object]:
    def fill(file: h5py.File) -> None:
        rows = file.create_dataset("images", (1,), h5py.vlen_dtype(np.uint8))
        rows[0] = np.frombuffer(content, np.uint8)

    return fill


def claims_too_much(tmp: Path) -> None:
    """An encoded image whose length, 4 GB, HDF5 would allocate."""
    in_hdf5(BRICK, encoded_brick(picture("PNG")))(tmp)
    path = tmp / "bids" / BRICK
    with h5py.File(path) as file:
        place = file["images"].id.get_offset()
    whole = bytearray(path.read_bytes())
    whole[place : place + 4] = struct.pack("<I", 4_000_000_000)
    put(path, bytes(whole))


def picture(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, kind)
    return stream.getvalue()


def grey(values: str, kind: str = "TIFF") -> bytes:
    """An image of numbers whose range is unknown: int32 or float32."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=values).reshape(8, 8)).save(stream, kind)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int) -> bytes:
    """A PNG file that declares a size and holds a few bytes."""
    fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*c) for c in ((b"IHDR", fields), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b""))
    )


def png_with_text() -> bytes:
    """A PNG file whose comment inflates to 512 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(MEMBER)) for _ in range(32)) + packer.flush()
    whole = picture("PNG")
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + text) + whole[33:]


def jpeg(width: int, height: int) -> bytes:
    whole = picture("JPEG")
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 :]


def tiff(width: int, height: int) -> bytes:
    whole = bytearray(picture("TIFF"))
    (start,) = struct.unpack_from("<I", whole, 4)
    for i in range(struct.unpack_from("<H", whole, start)[0]):
        place = start + 2 + 12 * i
        tag = struct.unpack_from("<H", whole, place)[0]
        if tag in (256, 257):
            struct.pack_into("<HI", whole, place + 2, 4, 1)
            struct.pack_into("<I", whole, place + 8, {256: width, 257: height}[tag])
    return bytes(whole)


def webp() -> bytes:
    """The largest size that a WebP header can declare: 16383 x 16383."""
    whole = bytearray(picture("WEBP"))
    place = whole.index(b"\x9d\x01\x2a") + 3
    whole[place : place + 4] = struct.pack("<HH", 16383, 16383)
    return bytes(whole)


PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n"
SVG = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'

CASES = {
    # NIfTI
    "betas that are pickled": Case(65, "not a NIfTI file", lambda t: put(t / "bids" / BETAS, trap(t))),
    "betas of a shape beyond all memory": Case(65, "more than a file of", on(BETAS, shape_beyond)),
    "betas whose body never ends": Case(65, "holds more data than", on(BETAS, body_without_end)),
    "betas with an extension of 2 GB": Case(
        65, "holds more data than", on(BETAS, extension_of_two_gigabytes)
    ),
    "betas that begin after 2 GB": Case(65, "begin at byte", on(BETAS, data_far_behind)),
    "betas that are a pipe": Case(66, "is a pipe", on(BETAS, pipe)),
    "betas that are an endless device": Case(66, "is a device", on(BETAS, endless)),
    "mask of 8 GB": Case(65, "8000000000 voxels", on(MASK, mask_of_a_huge_shape)),
    "mask in two files": Case(65, "in a second file", on(MASK, second_file)),
    # HDF5
    "HDF5 that links to a file of the system": Case(65, "behind a link", in_hdf5(BETAS_HDF5, linked)),
    "HDF5 that links in a circle": Case(65, "betas", in_hdf5(BETAS_HDF5, soft_loop)),
    "HDF5 group that holds itself": Case(65, "has a group", in_hdf5(BETAS_HDF5, group_of_itself)),
    "HDF5 stored in /etc/passwd": Case(
        65, "in other files", in_hdf5(BETAS_HDF5, external_storage("betas", SHAPE, "i2"))
    ),
    "HDF5 of a virtual array": Case(65, "in other files", in_hdf5(BETAS_HDF5, virtual("betas", SHAPE, "i2"))),
    "HDF5 that needs a plugin": Case(
        65, "cannot be read", in_hdf5(BETAS_HDF5, unknown_filter("betas", SHAPE, "i2"))
    ),
    "HDF5 of more than it can hold": Case(
        65, "can hold", in_hdf5(BETAS_HDF5, declared((6, 1 << 20, 1 << 20, 1 << 20), chunks=(6, 1, 1, 1)))
    ),
    "HDF5 of one chunk of 1 GB": Case(
        65, "chunks of", in_hdf5(BETAS_HDF5, declared(HUGE, chunks=HUGE, compression=9))
    ),
    "HDF5 of pickled values": Case(65, "data type", pickled_values),
    "HDF5 with a pickled attribute": Case(65, "lists 6 trials", pickled_attribute),
    "HDF5 of objects": Case(
        65,
        "data type",
        in_hdf5(BETAS_HDF5, lambda f: f.create_dataset("betas", SHAPE, h5py.string_dtype())),
    ),
    # bricks of images
    "brick stored in /etc/passwd": Case(
        65, "in other files", in_hdf5(BRICK, external_storage("imgBrick", (1, 8, 8, 3), "u1"))
    ),
    "brick of a virtual array": Case(
        65, "in other files", in_hdf5(BRICK, virtual("imgBrick", (1, 8, 8, 3), "u1"))
    ),
    "brick that links in a circle": Case(65, "must hold exactly one", in_hdf5(BRICK, soft_loop)),
    "brick that needs a plugin": Case(
        65, "row 0 cannot be read", in_hdf5(BRICK, unknown_filter("imgBrick", (1, 8, 8, 3), "u1"))
    ),
    "brick of images too large": Case(
        65,
        "more than the limit",
        in_hdf5(BRICK, lambda f: f.create_dataset("imgBrick", WIDE, "u1", chunks=(1, 8, 8, 3))),
    ),
    "brick of an encoded bomb": Case(
        65, "decompression bomb", in_hdf5(BRICK, encoded_brick(jpeg(60000, 60000)))
    ),
    "brick that was never written": Case(
        65,
        "row 0 was never written",
        in_hdf5(BRICK, lambda f: f.create_dataset("imgBrick", (1, 8, 8, 3), "u1", chunks=(1, 8, 8, 3))),
    ),
    "brick of a chunk for each value": Case(
        65,
        "3000000 chunks per image",
        in_hdf5(BRICK, lambda f: f.create_dataset("imgBrick", (1, 1000, 1000, 3), "u1", chunks=(1, 1, 1, 1))),
    ),
    "brick of a chunk of many encoded images": Case(
        65,
        "chunks of 2000000 images",
        in_hdf5(
            BRICK, lambda f: f.create_dataset("i", (2_000_000,), h5py.vlen_dtype("u1"), chunks=(2_000_000,))
        ),
    ),
    "brick of a row that claims 4 GB": Case(65, "declares 4000000000 bytes", claims_too_much),
    # images
    "PNG of 10 gigapixels": Case(65, "decompression bomb", on(IMAGE, png(100_000, 100_000))),
    "PNG of 80 megapixels": Case(65, "10000 x 8000", on(IMAGE, png(10_000, 8_000))),
    "PNG of 4,000,000 x 16 pixels": Case(65, "sides of up to", on(IMAGE, png(4_000_000, 16))),
    "PNG of one column": Case(65, "sides of up to", on(IMAGE, png(1, 64_000_000))),
    "PNG of a long strip": Case(65, "100 times", on(IMAGE, png(16, 16_000))),
    "PNG whose comment inflates": Case(65, "not a readable image", on(IMAGE, png_with_text())),
    "JPEG of 4 gigapixels": Case(65, "decompression bomb", on(IMAGE, jpeg(65_500, 65_500))),
    "JPEG of 81 megapixels": Case(65, "9000 x 9000", on(IMAGE, jpeg(9_000, 9_000))),
    "TIFF of 80 megapixels": Case(65, "10000 x 8000", on(IMAGE, tiff(10_000, 8_000))),
    "WebP of 268 megapixels": Case(65, "decompression bomb", on(IMAGE, webp())),
    "TIFF of 32-bit integers": Case(65, "32-bit integers", on(IMAGE, grey("i4"))),
    "TIFF of floating-point values": Case(65, "floating-point", on(IMAGE, grey("f4"))),
    "brick of an encoded TIFF of floating-point values": Case(
        65, "row 0 has floating-point", in_hdf5(BRICK, encoded_brick(grey("f4")))
    ),
    "image that is a PostScript program": Case(65, "not a readable image", on(IMAGE, PS)),
    "image that is an SVG with entities": Case(65, "not a readable image", on(IMAGE, SVG)),
    "image that is pickled": Case(65, "not a readable image", lambda t: put(t / "bids" / IMAGE, trap(t))),
    "image of 40 GB": Case(65, "bytes; image files", on(IMAGE, sparse)),
}
