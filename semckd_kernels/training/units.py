"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``"850 us"``, ``"12.3 ms"``, ``"11.0 s"``, ``"4 min 10 s"`` or ``"2 h 55 min"``: three digits, no exponent."""
    if seconds < 59.95:
        # the limits are where three digits would round up to the next unit
        scale, unit = (1e6, "us") if seconds < 0.9995e-3 else (1e3, "ms") if seconds < 0.9995 else (1.0, "s")
        return f"{three_digits(scale * seconds)} {unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def three_digits(x: float) -> str:
    """A number with three digits, and all of those before its point: ``"0.850"``, ``"12.3"``, ``"1,234"``."""
    digits = 0 if abs(x) >= 99.95 else 1 if abs(x) >= 9.995 else 2 if abs(x) >= 0.9995 else 3
    return f"{x:,.{digits}f}"
