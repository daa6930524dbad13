"""Which promises of a drill its run did not keep."""

from __future__ import annotations

from novacron.model.drill import DrillFigures


def misses(measured: DrillFigures, promised: DrillFigures) -> list[str]:
    """Return the promises that were not kept, each as a sentence."""
    words = {"detect_s": "it was noticed", "recover_s": "it was well again", "loss_s": "what was lost reached back"}
    missed = []
    for field, what in words.items():
        promise, value = getattr(promised, field), getattr(measured, field)
        if promise is not None and value is None:
            missed.append(f"{field} was not measured, and at most {promise:.0f} s are promised")
        elif promise is not None and value > promise:
            missed.append(f"{what} after {value:.1f} s, and {promise:.0f} s are promised")
    return missed
