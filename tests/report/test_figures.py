"""Which test images are shown, and how."""

import numpy as np
import pytest

from bidsapp.report.figures import (
    GAP,
    N_RANKED,
    N_SAMPLE,
    SIDE,
    choose_images,
    rank_scores,
    ranking,
    side_by_side,
)
from bidsapp.report.records import SubjectReport


def report(scores: dict[str, list[float]], ids: list[str] | None = None, **more: object) -> SubjectReport:
    n = len(next(iter(scores.values())))
    names = ids or [f"s{i:02d}" for i in range(n)]
    values = {k: np.array(v) for k, v in scores.items()}
    return SubjectReport(subject="01", stimulus_ids=tuple(names), per_image=values, **more)  # type: ignore[arg-type]


def test_order_breaks_ties_by_the_next_score_and_then_by_id() -> None:
    r = report(
        {"stage2_two_way_clip": [0.5, 1.0, 1.0, 1.0, np.nan], "stage2_pixcorr": [0.9, 0.1, 0.3, 0.3, 1.0]},
        ids=["a", "b", "d", "c", "e"],
    )
    assert rank_scores(r) == ("stage2_two_way_clip", "stage2_pixcorr")
    assert [r.stimulus_ids[i] for i in ranking(r)] == ["c", "d", "b", "a", "e"]


def test_best_median_and_worst_are_disjoint_and_in_rank() -> None:
    values = np.random.default_rng(0).permutation(40) / 40
    groups = {key: indices for key, _, _, indices in choose_images(report({"stage2_pixcorr": list(values)}))}
    ranked = sorted(range(40), key=lambda i: -values[i])
    assert groups["best"] == ranked[:N_RANKED]
    assert groups["worst"] == ranked[-N_RANKED:]
    assert groups["median"] == ranked[18:22]
    assert len(set(groups["sample"])) == N_SAMPLE


def test_sample_depends_on_seed_and_ids_but_not_on_scores_or_order() -> None:
    ids = [f"s{i:02d}" for i in range(40)]
    scores = list(np.linspace(0, 1, 40))

    def sample(names: list[str], values: list[float], seed: int) -> list[str]:
        r = report({"stage2_pixcorr": values}, ids=names, seed=seed)
        return [names[i] for i in choose_images(r)[0][3]]

    first = sample(ids, scores, 1)
    assert first == sample(ids[::-1], scores, 1) == sample(ids, scores[::-1], 1)
    assert first != sample(ids, scores, 2)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_few_images_are_all_shown_once(n: int) -> None:
    groups = choose_images(report({"stage2_pixcorr": list(np.linspace(0, 1, n))}))
    assert [key for key, *_ in groups] == ["all"]
    assert sorted(groups[0][3]) == list(range(n))


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (425, 300)])
def test_side_by_side(size: tuple[int, int]) -> None:
    colours = [(200, 10, 20), (10, 200, 20), (10, 20, 200)]
    images = [np.full((*size, 3), c, np.uint8) for c in colours]
    picture = side_by_side(images)
    assert picture.shape == (SIDE, 3 * SIDE + 2 * GAP, 4)
    for i, colour in enumerate(colours):
        left = i * (SIDE + GAP)
        assert (picture[:, left : left + SIDE] == (*colour, 255)).all()
    assert not picture[:, SIDE : SIDE + GAP].any()
