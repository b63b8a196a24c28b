"""How numbers are rounded and printed: rates, intervals, changes, counts."""

from __future__ import annotations

MISSING = "–"


def percent(rate: float | None) -> str:
    """`0.9861` as `98.6%`. Only an exact 1 prints as 100.0%, only an exact 0 as 0.0%."""
    if rate is None:
        return MISSING
    rounded = round(100 * rate, 1)
    if rounded == 100 and rate < 1:
        return ">99.9%"
    return "<0.1%" if rounded == 0 and rate > 0 else f"{rounded:.1f}%"


def interval(low: float | None, high: float | None) -> str:
    """`97.1–98.9%`, or an empty string where no interval was measured."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}%"


def points(before: float, after: float) -> str:
    """A change of a rate in percentage points, signed: `−0.4`."""
    change = round(100 * (after - before), 1)
    return f"{'+' if change > 0 else '−' if change < 0 else '±'}{abs(change):.1f}"


def number(value: float | None) -> str:
    """`3`, `2.5`, or a dash for a figure that was not measured."""
    return MISSING if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """`1 unit`, `2,000 units`."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def tidy(value: float) -> float:
    """Six significant digits: what float32 carries, and no more than anyone can defend."""
    return float(f"{value:.6g}")
