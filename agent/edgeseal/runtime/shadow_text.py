"""What is said of a release in the shadow: in Prometheus' text format, and in words for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal.runtime.serve_status import ShadowStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgeseal.runtime.shadow_figures import OutputFigures

_COUNTERS: Final[dict[str, tuple[str, Callable[[ShadowStatus], int]]]] = {
    "answers_seen": ("Answers that could have been copied.", lambda s: s.seen),
    "copies": ("Copies of requests sent to the release in the shadow.", lambda s: s.copied),
    "dropped": ("Copies dropped because it was busy.", lambda s: s.dropped),
    "compared": ("Copies that both releases answered.", lambda s: s.figures.compared),
    "differing": ("Compared answers that differ beyond what is allowed.", lambda s: s.figures.differing),
    "nan": ("Compared answers with values that are not numbers.", lambda s: s.figures.nan),
    "errors": ("Copies that the release in the shadow did not answer.", lambda s: s.figures.errors),
    "crashes": ("Times that its process ended.", lambda s: s.crashes),
}
_OUTPUTS: Final[dict[str, tuple[str, Callable[[OutputFigures], float | None]]]] = {
    "max_abs": ("Largest absolute difference of an output.", lambda o: o.max_abs),
    "max_relative": ("Largest difference, as part of the largest magnitude.", lambda o: o.max_relative),
    "mean_relative": ("Mean over requests of that part.", lambda o: o.mean_relative),
    "top1": ("Part of classes (argmax) that agree.", lambda o: o.top1),
}


def metrics(status: Mapping[str, Any]) -> str:
    """Return the lines for all models in the shadow; `status` is the supervisor's, by model, in plain types."""
    shadows = {model: found for model, about in status.items() if (found := _shadow(about)) is not None}
    lines: list[str] = []
    for name, (about, counted) in _COUNTERS.items():
        _add(
            lines,
            f"edgeseal_shadow_{name}_total",
            "counter",
            about,
            {_labels(m, s): counted(s) for m, s in shadows.items()},
        )
    ratios = {_labels(m, s): ratio for m, s in shadows.items() if (ratio := s.figures.latency_ratio()) is not None}
    _add(lines, "edgeseal_shadow_latency_ratio", "gauge", "Median of the new time to the old one.", ratios)
    for name, (about, measured) in _OUTPUTS.items():
        values = {
            _labels(m, s, output=output): value
            for m, s in shadows.items()
            for output, figures in sorted(s.figures.outputs.items())
            if (value := measured(figures)) is not None
        }
        _add(lines, f"edgeseal_shadow_output_{name}", "gauge", about, values)
    return "".join(line + "\n" for line in lines)


def _shadow(about: Any) -> ShadowStatus | None:  # noqa: ANN401 - JSON
    found = about.get("shadow") if isinstance(about, dict) else None
    return None if found is None else msgspec.convert(found, ShadowStatus)


def _add(lines: list[str], name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
    if values:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [
            f"{name}{{{labels}}} {value:g}" if kind == "gauge" else f"{name}{{{labels}}} {value}"
            for labels, value in values.items()
        ]


def _labels(model: str, shadow: ShadowStatus, **more: str) -> str:
    """Return labels; an output's name is the model's and may hold anything (exposition format 0.0.4, escaping)."""
    named = {"model": model, "release": str(shadow.release), **more}
    return ",".join(f'{k}="{_escaped(v)}"' for k, v in named.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def words(shadow: ShadowStatus) -> str:
    """Return for a person how it went so far."""
    figures = shadow.figures
    if not figures.tried:
        return f"no answer compared ({shadow.reason or shadow.state}, {shadow.seen} requests seen)"
    parts = [f"{figures.compared} answers compared", f"{figures.differing} differ"]
    parts += [f"{figures.nan} not numbers"] if figures.nan else []
    parts += [f"{figures.errors} failed"] if figures.errors else []
    parts += [f"{shadow.crashes} crashes"] if shadow.crashes else []
    parts += [f"{shadow.dropped} copies dropped"] if shadow.dropped else []
    for name, output in sorted(figures.outputs.items())[:1]:
        parts.append(f"{name}: mean relative difference {output.mean_relative:.2g}, largest {output.max_relative:.2g}")
        parts += [f"top-1 agreement {output.top1:.1%}"] if output.top1 is not None else []
    ratio = figures.latency_ratio()
    return ", ".join(parts + ([f"{ratio:.2g} times as long"] if ratio is not None else []))
