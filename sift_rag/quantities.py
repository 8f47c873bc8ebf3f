"""How numbers are written for people: three figures, the right unit, "n/a" where there is none."""

from __future__ import annotations

import math
from typing import TypeGuard

MISSING = "n/a"
_THIN = "\u202f"  # narrow, and no line breaks at it
_MINUS = "\u2212"


def figure(value: float | None) -> str:
    """Three significant figures, thousands set apart: 0.0123, 4.5, 1,230."""
    if not _known(value):
        return MISSING
    rounded = float(f"{value:.3g}")
    text = f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"
    return text.replace("-", _MINUS)


def amount(value: float | None, unit: str) -> str:
    """A value of a metric: percent of a share, else a figure and its unit."""
    if not _known(value):
        return MISSING
    if unit == "share":
        return f"{_percent(value)}{_THIN}%"
    return f"{figure(value)}{_THIN}{unit}".rstrip()


def change(value: float | None, unit: str) -> str:
    """A difference with its sign; of shares in percentage points (pp)."""
    if not _known(value):
        return MISSING
    text = f"{_percent(value)}{_THIN}pp" if unit == "share" else amount(value, unit)
    return f"+{text}" if value > 0 else text


def span(low: float | None, high: float | None, unit: str) -> str:
    """An interval without its unit: "83.1 to 98.3" of shares in percent or points."""
    if not (_known(low) and _known(high)):
        return MISSING
    write = _percent if unit == "share" else figure
    return f"{write(low)} to {write(high)}"


def tick(value: float, unit: str) -> str:
    """A number at an axis: 50 for half of a share."""
    return _percent(value).removesuffix(".0") if unit == "share" else figure(value)


def seconds(value: float | None) -> str:
    """A duration: 0.42 ms, 350 ms, 1.23 s, 4.5 min, 2 h."""
    if not _known(value):
        return MISSING
    for limit, factor, unit in ((1, 1000, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{figure(value * factor)}{_THIN}{unit}"
    return f"{figure(value / 3600)}{_THIN}h"


def size(value: float | None) -> str:
    """Bytes: 512 B, 3.2 MB, 1.1 GB (powers of 1,000)."""
    return _scaled(value, "B")


def operations(value: float | None) -> str:
    """Floating-point operations: 1.8 GFLOP."""
    return _scaled(value, "FLOP")


def money(value: float | None, currency: str) -> str:
    """An amount of money: 0.0012 USD, 3.50 USD."""
    if not _known(value):
        return MISSING
    return f"{value:,.2f}{_THIN}{currency}" if value >= 1 else f"{value:.2g}{_THIN}{currency}"


def probability(value: float | None) -> str:
    """A p-value: 0.42, 0.032, "< 0.001"."""
    if not _known(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _percent(share: float) -> str:
    return f"{100 * share + 0.0:.1f}".replace("-0.0", "0.0").replace("-", _MINUS)


def _scaled(value: float | None, unit: str) -> str:
    if not _known(value):
        return MISSING
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    step = min(int(math.log10(max(abs(value), 1)) // 3), len(prefixes) - 1)
    return f"{figure(value / 1000**step)}{_THIN}{prefixes[step]}{unit}"
