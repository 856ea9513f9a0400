"""What a finished subject was made of."""

from __future__ import annotations

from pathlib import Path

from bidsapp.completion import mask_record


def test_a_segmentation_with_another_table_is_another(tmp_path: Path) -> None:
    image, table = tmp_path / "sub-01_dseg.nii.gz", tmp_path / "sub-01_dseg.tsv"
    image.write_bytes(b"an image")
    found = [mask_record(image)]
    for text in ("index\tname\n1\tV1\n", "index\tname\n11\tV1\n"):
        table.write_text(text)
        found.append(mask_record(image))
    assert found[0] != found[1] != found[2]
    assert mask_record(image) == found[2]
