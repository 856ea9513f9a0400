"""Masking a session of NSD's size: this package against nilearn, nibabel, and inflating alone.

    python benchmarks/masking.py [--volumes 120] [--hdf5] [--repeats 3] [--folder DIR]

The session is generated: 81 x 104 x 83 voxels, int16, of which a brain of 31 % holds noise of NSD's
size (standard deviation 1.5 % x 300); 15,724 voxels are kept. A session of NSD has 750 volumes. Each way
runs on one processor, in a process of its own.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import measuring, megabytes, parser, report, run_ways, save, table, use_processors

SHAPE, N_VOXELS, SCALE = (81, 104, 83), 15724, 300.0
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
SESSION, TWIN, MASK = "betas.nii.gz", "betas.hdf5", "mask.nii.gz"


def _mask(folder: Path) -> Any:
    from bidsapp.records import Mask
    from bidsapp.storage.nifti import load_volume

    volume = load_volume(folder / MASK)
    return Mask(volume.data > 0, volume.affine)


def inflate(folder: Path, n: int) -> None:
    """Inflate the file and do nothing with it: no reader of a NIfTI file can be faster."""
    from isal import igzip

    block = bytearray(1 << 20)
    with igzip.open(folder / SESSION, "rb") as stream, measuring() as measured:
        while stream.readinto(block):
            pass
    report(measured)


def bidsapp(folder: Path, n: int, name: str = SESSION) -> None:
    """Mask as this package does, to a file."""
    from bidsapp.data.betas import mask_session

    mask = _mask(folder)
    way = "bidsapp" if name == SESSION else "bidsapp, HDF5"
    with measuring() as measured:
        mask_session(_session(folder / name, n), mask, folder / f"{way}.npy")
    report(measured)


def hdf5(folder: Path, n: int) -> None:
    """Mask the HDF5 twin, stored as NSD's are: a chunk for each voxel over all trials."""
    bidsapp(folder, n, TWIN)


def nilearn(folder: Path, n: int) -> None:
    """Mask by nilearn's ``apply_mask``."""
    from nilearn.masking import apply_mask

    with measuring() as measured:
        values = apply_mask(str(folder / SESSION), str(folder / MASK)) / np.float32(SCALE)
    np.save(folder / "nilearn apply_mask.npy", values)
    report(measured)


def nibabel(folder: Path, n: int) -> None:
    """Load the whole session by nibabel's ``get_fdata`` and choose voxels, as public scripts do."""
    import nibabel as nib

    inside = np.asarray(nib.load(folder / MASK).dataobj) > 0
    with measuring() as measured:
        values = nib.load(folder / SESSION).get_fdata()[inside].T / SCALE
    np.save(folder / "nibabel get_fdata.npy", values.astype(np.float32))
    report(measured)


def _threaded(n_jobs: int) -> Any:
    def several(folder: Path, n: int) -> None:
        """Mask the session four times, ``n_jobs`` at a time."""
        from bidsapp.data.sessions import mask_sessions

        mask = _mask(folder)
        outs = [folder / f"several-{i}.npy" for i in range(4)]
        with measuring() as measured:
            mask_sessions([_session(folder / SESSION, n)] * 4, mask, outs, n_jobs)
        report(measured)

    return several


WAYS = {
    "inflating alone": inflate,
    "bidsapp": bidsapp,
    "nilearn apply_mask": nilearn,
    "nibabel get_fdata": nibabel,
    "bidsapp, HDF5": hdf5,
}
SEVERAL = {f"4 sessions, --n-cpus {n}": _threaded(n) for n in (1, 2)}


def main() -> None:
    """Measure, print a table, write JSON."""
    options = parser(__doc__, {**WAYS, **SEVERAL})
    options.add_argument("--volumes", type=int, default=120)
    options.add_argument("--hdf5", action="store_true", help="also the HDF5 twin (takes a minute to write)")
    given = options.parse_args()
    if given.way:
        use_processors(2 if given.way in SEVERAL else 1)
        {**WAYS, **SEVERAL}[given.way](given.folder, given.volumes)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        generate(folder, given.volumes, twin=given.hdf5)
        arguments = ["--folder", str(folder), "--volumes", str(given.volumes)]
        ways = [way for way in WAYS if given.hdf5 or way != "bidsapp, HDF5"]
        found = run_ways(__file__, ways, arguments, given.repeats)
        several = run_ways(__file__, list(SEVERAL), arguments, given.repeats)
        size = (folder / SESSION).stat().st_size
        differences = compare(folder, ways)
    print(f"{given.volumes} volumes of {SHAPE}, {size / 1e6:.0f} MB compressed, {N_VOXELS} voxels kept\n")
    alone = found["inflating alone"]["seconds"]
    rows = [
        [
            way,
            f"{r['seconds']:.2f}",
            f"{r['seconds'] / alone:.2f}",
            f"{r['cpu_seconds']:.2f}",
            megabytes(r["memory_peak"]),
            megabytes(r["memory_before"]),
            f"{differences[way]:.1g}" if way in differences else "",
        ]
        for way, r in found.items()
    ]
    print(
        table(["", "seconds", "x inflating", "CPU seconds", "peak MB", "of it libraries", "difference"], rows)
    )
    print()
    print(
        table(
            ["", "seconds", "peak MB"],
            [[w, f"{r['seconds']:.2f}", megabytes(r["memory_peak"])] for w, r in several.items()],
        )
    )
    ratio = found["nilearn apply_mask"]["seconds"] / found["bidsapp"]["seconds"]
    print(f"\nbidsapp is {ratio:.1f} times as fast as apply_mask")
    results = {"volumes": given.volumes, "compressed_bytes": size, "ways": found, "several": several}
    results |= {"largest_difference_percent_signal": differences, "times_as_fast_as_apply_mask": ratio}
    print(save("masking", results, ("isal", "nibabel", "nilearn", "h5py")))


def generate(folder: Path, n: int, *, twin: bool) -> None:
    """Write the session, its mask and perhaps its HDF5 twin, where they are not there already."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"generated-{n}"
    if not done.exists():
        rng = np.random.default_rng(0)
        axes = np.meshgrid(*[np.linspace(-1, 1, s) for s in SHAPE], indexing="ij")
        radius = np.sqrt(np.square(axes).sum(0))
        brain = (radius < 0.85).ravel(order="F")
        # As nsdgeneral: at the back, a shell rather than a block, in a box of 61 x 46 x 42 voxels.
        back = np.zeros(SHAPE, bool)
        back[10:71, 5:51, 20:62] = True
        shell = (back & (radius < 0.85)).ravel(order="F")
        order = np.argsort(np.abs(radius.ravel(order="F") - 0.7)[shell], kind="stable")
        mask = np.zeros(brain.size, np.uint8)
        mask[np.flatnonzero(shell)[order[:N_VOXELS]]] = 1
        nib.save(nib.Nifti1Image(mask.reshape(SHAPE, order="F"), AFFINE), folder / MASK)
        header = nib.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), AFFINE).header
        header.set_data_shape((*SHAPE, n))
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with gzip.open(folder / SESSION, "wb", compresslevel=6) as stream:
            stream.write(header.binaryblock + b"\0" * 4)
            for _ in range(n):
                volume = np.zeros(brain.size, np.int16)
                volume[brain] = np.round(rng.normal(0, 1.5 * SCALE, np.count_nonzero(brain)))
                stream.write(volume.tobytes())
        (folder / TWIN).unlink(missing_ok=True)
        done.touch()
    if twin and not (folder / TWIN).exists():
        import h5py

        values = np.asarray(nib.load(folder / SESSION).dataobj.get_unscaled())
        with h5py.File(folder / TWIN, "w") as file:
            file.create_dataset("betas", data=values.transpose(3, 2, 1, 0), chunks=(n, 1, 1, 1))


def compare(folder: Path, ways: list[str]) -> dict[str, float]:
    """Largest difference of each way's values from this package's, in percent signal change."""
    import nibabel as nib

    inside = np.asarray(nib.load(folder / MASK).dataobj) > 0
    ours = np.load(folder / "bidsapp.npy", mmap_mode="r")
    # nibabel and nilearn order voxels as C does, this package as NIfTI does.
    order = np.empty(N_VOXELS, np.int64)
    order[np.argsort(np.ravel_multi_index(np.nonzero(inside), SHAPE, order="F"))] = np.arange(N_VOXELS)
    found = {}
    for way in ways:
        if (folder / f"{way}.npy").exists():
            other = np.load(folder / f"{way}.npy", mmap_mode="r")
            mine = ours if way.startswith("bidsapp") else ours[:, order]
            found[way] = float(np.abs(mine - other).max())
    return found


def _session(path: Path, n: int) -> Any:
    from bidsapp.records import Session

    return Session("01", path, path, tuple(str(i) for i in range(n)), SCALE)


if __name__ == "__main__":
    main()
