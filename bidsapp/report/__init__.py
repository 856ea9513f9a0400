"""Reports: one HTML file per subject and one for the group, with small images alongside.

They load nothing over the network and need no script, so they can be read offline, mailed and archived.
"""

from bidsapp.report.group import write_group_report
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
from bidsapp.report.subject import write_subject_report

__all__ = [
    "Column",
    "ExtraFigure",
    "GroupMean",
    "GroupReport",
    "LadderImages",
    "MissingSubject",
    "RidgePenalty",
    "ScoreRow",
    "SubjectChecks",
    "SubjectEntry",
    "SubjectReport",
    "write_group_report",
    "write_subject_report",
]
