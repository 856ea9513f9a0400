"""Reports in which every section has something to show, with names as long as they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bidsapp.analyses import findings as rules
from bidsapp.demo import scenes
from bidsapp.evidence import (
    RUNGS,
    CaptionMatch,
    Evidence,
    GroupQuality,
    HoldoutScores,
    LadderRow,
    ProtocolScores,
    RegionScore,
    Reliability,
    RoiAnalysis,
    SeedSpread,
    Spuriousness,
    TargetQuality,
    TrialOrder,
    Value,
)
from bidsapp.report.figures import save_png
from bidsapp.report.records import (
    Column,
    ExtraFigure,
    GroupMean,
    GroupReport,
    LadderImages,
    MissingSubject,
    RidgePenalty,
    ScoreRow,
    SubjectChecks,
    SubjectEntry,
    SubjectReport,
)

NETWORKS = ("clip", "alexnet2", "efficientnet_lite0")
METRICS = ("pixcorr", "ssim", *(f"two_way_{n}" for n in NETWORKS), "distance_swav")
_LONG = "/data/a/very/long/path/without/any/place/to/break/at/" + "x" * 120


def evidence(n: int = 30, seed: int = 0) -> Evidence:
    """Every check of a run whose trial order is broken in one session."""
    rng = np.random.default_rng(seed)
    ladder = []
    for rung in RUNGS:
        for stage in ("stage1", "stage2"):
            if stage == "stage1" and rung in ("truth", "retrieval"):
                continue
            for metric in ("identification", *METRICS):
                v = float(rng.uniform(0.4, 1))
                ladder.append(
                    LadderRow(rung, stage, metric, Value(v, v - 0.05, v + 0.05), Value(v - 0.2, 0.1, 0.9), n)
                )
    targets = []
    for name, parts in (("vdvae", 31), ("clip_vision", 257), ("clip_text", 77)):
        r, r2 = rng.uniform(0, 0.8, 500), rng.uniform(-0.2, 0.5, 500)
        groups = tuple(
            GroupQuality(f"part {i}", 10, Value(float(v), 0.0, 0.8), Value(0.7))
            for i, v in enumerate(rng.uniform(0, 0.8, parts), start=1)
        )
        two_way = (Value(0.9, 0.85, 0.95), 0.0005, Value(0.4, 0.3, 0.5), Value(0.1, 0.05, 0.2), 17.5)
        targets.append(TargetQuality(name, r, r2, r + 0.1, groups, *two_way, 500, n, 8859))
    lags = (-2, -1, 0, 1, 2)
    orders = tuple(
        TrialOrder(f"nsd{s:02d}", lags, np.roll([0.0, 0.01, 0.2, 0.01, 0.0], s == 3), np.full(5, 0.01), 400)
        for s in range(1, 6)
    )
    x = rng.uniform(0.5, 0.9, n)
    likeness = Spuriousness(
        "CLIP's image embedding", x, x, x + 0.1, Value(0.8, 0.7, 0.9),
        Value(0.8, 0.7, 0.9), Value(0.95, 0.9, 1.0), 25, 10,
    )  # fmt: skip
    found = Evidence(
        ladder=tuple(ladder),
        targets=tuple(targets),
        reliability=Reliability(Value(0.9), 0.0005, n),
        trial_order=orders,
        caption_match=CaptionMatch(Value(0.98), 0.0005, n),
        spuriousness=likeness,
    )
    values = {m: Value(0.5, 0.45, 0.55) for m in ("pixcorr", "ssim", "ssim_columnwise", "two_way_clip")}
    protocols = (
        ProtocolScores("bd2023", "Brain-Diffuser", values, {}, n),
        ProtocolScores("mindeye", "MindEye", values, {"distance_effnet": "efficientnet.pth"}, n),
    )
    found = replace(found, protocols=protocols, **options(n))
    return replace(found, findings=rules.find(found))


def options(n: int) -> dict[str, Any]:
    """Evidence of all optional analyses together."""
    ways = {"all": Value(0.8, 0.75, 0.85), "other_clusters": Value(0.7, 0.6, 0.8), "random_rest": Value(0.78)}
    holdout = tuple(
        HoldoutScores(t, way, v, Value(0.6, 0.5, 0.7), v, 0.0 if way == "all" else 221.4, 10, n)
        for t in ("vdvae", "clip_vision", "clip_text")
        for way, v in ways.items()
    )
    seeds = tuple(
        SeedSpread(stage, m, Value(0.7, 0.6, 0.8), 0.04, 0.01, 3, 12)
        for stage in ("stage1", "stage2")
        for m in METRICS
    )
    names = ("V1", "a-region-whose-name-does-not-end", "hV4")
    scores = tuple(
        RegionScore(r, 1204, t, a, Value(0.65, 0.6, 0.7), Value(0.6, 0.55, 0.66), 0.0149, 0.8, n, 200)
        for r in names
        for t in ("vdvae", "clip_vision", "clip_text")
        for a in ("keep", "lesion")
    )
    pictures = np.full((3, 8, 8, 3), 90, np.uint8)
    roi = RoiAnalysis(names, (1204, 1204, 1204), pictures, pictures, scores)
    return {"cluster_holdout": holdout, "generator_seeds": seeds, "roi_analysis": roi}


def full_subject_report(root, n: int = 30) -> SubjectReport:
    """Report of a subject; one further figure is written into ``root``."""
    rng = np.random.default_rng(1)
    drawn = [scenes.make_scene(0, i) for i in range(n)]
    stimuli = np.stack([scenes.draw(s, 32) for s in drawn])
    captions = tuple(scenes.captions(s)[0] for s in drawn)
    ids = tuple(f"scene{i:05d}" for i in range(n))
    scores = []
    for condition, mean in (("brain", 0.7), ("null", 0.5), ("oracle", 0.95)):
        for stage in ("stage1", "stage2"):
            for m in METRICS:
                ends = (mean - 0.05, mean + 0.04, 0.5, 0.4, 0.6)
                scores.append(ScoreRow(condition, stage, m, mean, *ends, n, p=0.001))
    save_png(root / "sub-01" / "figures" / "wide.png", np.full((300, 1400, 3), 90, np.uint8))
    rungs = {rung: stimuli[:12] // (i + 1) for i, rung in enumerate(RUNGS)}
    return SubjectReport(
        subject="01",
        task="scenes",
        space="func1pt8mm",
        recipe="brain-diffuser",
        stimulus_ids=ids,
        captions=captions,
        stimuli=stimuli,
        stage1=stimuli // 2,
        stage2=stimuli,
        per_image={f"stage2_{m}": rng.uniform(size=n) for m in METRICS},
        scores=tuple(scores),
        penalties={"vdvae": RidgePenalty(50000.0, "penalty chosen by k folds from 10, 50,000")},
        counts={"sessions": 40, "trials": 30000, "voxels used": 15724, "test images": n},
        repeats={"training": {1: 10, 3: 8849}, "test": {3: n}},
        settings={"run": {"split_file": _LONG}, "recipe": {"metrics": {"networks": list(NETWORKS)}}},
        command=f"bidsapp-recon {_LONG} /out participant",
        versions={"bidsapp-recon": "0.1.0", "numpy": "2"},
        errors=(f"{_LONG} is truncated.\nCopy it again: {_LONG}",),
        warnings=("Two voxels were dropped.",),
        figures=tuple(ExtraFigure(s, "sub-01/figures/wide.png", "Voxels used", "Slices", "All of them.")
                      for s in ("reconstructions", "scores", "regions", "data")),
        ladder=LadderImages(ids[:12], captions[:12], rungs, ("random",)),
        evidence=evidence(n),
        run_id="20260101T000000-abcdef",
        duration_s=3661.0,
    )  # fmt: skip


def full_group_report(root) -> GroupReport:
    """Report of twelve subjects, one of them broken, two missing; needs a subject's pictures in ``root``."""
    rng = np.random.default_rng(2)
    columns = tuple(
        Column("_".join(x for x in ("" if c == "brain" else c, s, m) if x), c, s, m, "scenes")
        for c in ("brain", "null", "oracle")
        for m in METRICS
        for s in ("stage1", "stage2")
    )
    figures = sorted((root / "sub-01" / "figures").glob("*_desc-median1_recon.png"))
    figure = f"sub-01/figures/{figures[0].name}"
    subjects = []
    for i in range(1, 13):
        checks = SubjectChecks(
            {"ok": 6, "broken": 1 if i == 2 else 0, "limit": 1},
            (("trial order", "Betas and trials are misaligned: ses-03 by 1 trial (late)."),) * (i == 2),
            {c.name: 0.001 for c in columns},
            {c.name: (0.45, 0.55) for c in columns if c.condition == "brain"},
        )
        values = {c.name: float(rng.uniform(0.4, 1)) for c in columns}
        subjects.append(SubjectEntry(f"{i:02d}", values, {"scenes": 982}, "sub-01.html", figure, checks))
    return GroupReport(
        tuple(subjects),
        columns,
        {c.name: GroupMean(0.7, 0.6, 0.8, 12) for c in columns},
        {c.name: 0.5 for c in columns if c.condition == "brain"},
        (MissingSubject("13", f"{_LONG}: the table has no rows"), MissingSubject("14", "there is no folder")),
        ("sub-03 was run with another recipe.",),
        command=f"bidsapp-recon {_LONG} /out group",
        versions={"bidsapp-recon": "0.1.0"},
    )
