"""Amounts as people read them: bytes and durations."""

from __future__ import annotations


def as_text(n_bytes: float) -> str:
    """Bytes for people: ``1.5 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def as_duration(seconds: float | None) -> str:
    """Say a rough time for people: ``20 s``, ``3 min``, ``1.5 h``, ``12 days``."""
    if seconds is None:
        return "not known"
    for unit, size in (("days", 172_800), ("h", 5_400), ("min", 90)):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{value:.0f} {unit}" if value >= 10 or unit == "min" else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
