"""`bamboo scaling`: from finished runs to laws, figures and tables."""

from pathlib import Path


def scaling(
    runs: list[Path], *, out: Path, loss: str = "val/loss", holdout: int = 1, resamples: int = 400, seed: int = 0
) -> None:
    """Fit scaling laws to finished runs, and print them beside published ones.

    Args:
        runs: CSV files with the columns parameters, data (or samples, or tokens), loss, and if known batch_size,
            learning_rate, tokens_per_sample (for compute, where data counts samples), compute, seed and name; or
            folders with runs of bamboo fit or studies in them.
        out: folder for scaling.json, scaling.csv and figures as PNG and SVG.
        loss: name under which bamboo fit logged the loss.
        holdout: how many of the largest pairs of parameters and data to predict from the others.
        resamples: bootstrap resamples behind each interval.
        seed: of the bootstrap.

    Raises:
        InputError: where no law can be fitted, in one line.
    """
    from bamboo.analysis.plots import save_figure
    from bamboo.errors import InputError

    from .plots import draw_all
    from .report import analyse
    from .runs import read_runs

    for name, value, least in (("holdout", holdout, 1), ("resamples", resamples, 10)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    table, skipped = read_runs(runs, loss)
    print(f"{len(table)} finished runs", *(f"left out: {line}" for line in skipped), sep="\n")
    report = analyse(table, holdout, resamples, seed)
    paths = report.save(out)
    for name, figure in draw_all(report):
        paths += save_figure(figure, out / name)
    print("", report.text(), "", *(f"wrote {path}" for path in paths), sep="\n")
