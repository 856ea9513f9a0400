"""The reports: one HTML file a subject and one for the group, with small pictures beside them.

They load nothing over the network and need no script, so they can be read offline, mailed, and kept.
"""

from bidsapp.report.group import write_group_report
from bidsapp.report.records import (
    Column,
    Estimate,
    ExtraFigure,
    GroupReport,
    LadderPictures,
    MissingSubject,
    ScoreRow,
    SubjectChecks,
    SubjectEntry,
    SubjectReport,
    TargetRow,
)
from bidsapp.report.subject import write_subject_report

__all__ = [
    "Column",
    "Estimate",
    "ExtraFigure",
    "GroupReport",
    "LadderPictures",
    "MissingSubject",
    "ScoreRow",
    "SubjectChecks",
    "SubjectEntry",
    "SubjectReport",
    "TargetRow",
    "write_group_report",
    "write_subject_report",
]
