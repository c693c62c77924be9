"""A front's band as a table, as JSON and as a figure."""

from __future__ import annotations

from pathlib import Path

from opbyte.core.errors import ConfigError
from opbyte.sweeps.console import Output, counted, shown
from opbyte.sweeps.front_bands import FrontBand
from opbyte.sweeps.store import Results

__all__ = ["drawn_band", "show_band"]

_MOST_ROWS = 20


def drawn_band(results: Results, band: FrontBand, target: Path) -> Path:
    """Draw the first two objectives with their band, and return the picture's path.

    Raises:
        ConfigError: If the front has one objective only.
    """
    from matplotlib import pyplot as plt

    from opbyte.sweeps import plots
    from opbyte.sweeps.plots._style import figure_of

    names = list(band.objectives)
    if len(names) < 2:
        rule = "a plot of a front needs two objectives"
        raise ConfigError.one("--plot", "", rule, names[0], "Leave --plot out.")
    axes = plots.pareto(results, names[0], names[1], objectives=band.objectives, band=band)
    drawn = plots.save(axes, target)[0]
    plt.close(figure_of(axes))
    return drawn


def show_band(results: Results, band: FrontBand, output: Output, figure: Path | None) -> None:
    """Print the points that may be on the front, most probable first.

    Args:
        results: The folder.
        band: What draws made of its front.
        output: Where to.
        figure: Where it was drawn, if it was.
    """
    frame = band.frame
    samples = len(band.on_front)
    output.data(
        {
            "name": results.name, "objectives": dict(band.objectives), "draws": samples,
            "simulated": band.simulated, "left_out": band.left_out,
            "points": frame.to_dict(orient="records"),
            "plots": [] if figure is None else [str(figure)],
        }
    )  # fmt: skip
    if output.silent:
        return
    dimensions = results.dimensions
    varied = [a for a in results.axes if frame[a].nunique() > 1] or results.axes
    rows = []
    likely = frame[frame["probability"] > 0.0]
    for _, row in likely.head(_MOST_ROWS).iterrows():
        cells = [shown(row[a], dimensions.get(a)) for a in varied]
        for name in band.objectives:
            low, value, high = (
                shown(row[n], dimensions.get(name)) for n in (f"{name}_low", name, f"{name}_high")
            )
            cells += [value, f"{low} .. {high}" if low != high else "-"]
        rows.append([*cells, f"{row['probability']:.3f}", "yes" if row["on_front"] else ""])
    heads = list(varied)
    for name, direction in band.objectives.items():
        heads += [f"{name} ({direction})", "5 .. 95 %"]
    more = f", {_MOST_ROWS} of {len(likely)}" if len(likely) > _MOST_ROWS else ""
    title = f"Front of {results.name}: {counted(len(likely), 'point')} on it in some draw{more}"
    output.table(title, [*heads, "probability", "as stored"], rows)
    what = "times, energies and costs" if band.simulated else "costs"
    looked = counted(len(frame), "point")
    output.line(f"{counted(samples, 'draw')} of what decides {what}; {looked} looked at")
    if band.simulated:
        output.line("  points were simulated again at analytic level; stored values move as those")
    if band.left_out:
        left = counted(band.left_out, "point")
        output.line(f"  {left} behind more fronts left out: raise --most")
    if figure is not None:
        output.line(f"figure: {figure}")
