"""The course of ``ndshare demo sgd`` as a picture."""

from __future__ import annotations

from ndshare.demo.sgd import Course

_DPI = 160


def save(path: str, alone: Course, together: Course) -> None:
    """Write accuracy over time of both runs to a PNG file; dotted lines mark the kills."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kill in together.kills:
        axes.axvline(kill, color="0.6", lw=0.9, ls=":")
    for course, colour in ((alone, "#4c72b0"), (together, "#ff7f0e")):
        title = f"{course.learners} process{'es' * (course.learners != 1)}, {course.steps:,} steps"
        if course.kills:
            title += f", {len(course.kills)} killed (dotted)"
        axes.plot(course.seconds, course.accuracies, color=colour, lw=1.8, label=title)
    axes.set(xlabel="seconds", ylabel="held-out digits that are right", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    figure.savefig(path)
