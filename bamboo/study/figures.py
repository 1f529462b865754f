"""The figures of a study in the order of the report, one idea each."""

from collections.abc import Iterator

import numpy as np

from bamboo.analysis.figures import Section

from .curves import ELSEWHERE, WHOLE, plot_elsewhere, plot_over_depth, plot_training
from .pictures import plot_maps, plot_reconstructions
from .results import Results
from .trends import plot_against_depth, plot_cost, plot_row

INTERVALS = "Dots are seeds, lines their means, bars 95 % intervals of the mean over seeds (Student's t)."


def draw_all(results: Results) -> list[Section]:
    """Every figure that can be drawn of what is finished; the last one is that of cost."""
    if not results.done:
        return []
    text = (
        "Time of one optimizer step (median), and the memory that its forward pass keeps for the backward pass, at "
        "equal parameters. Dots are cells. Bytes are counted; time is of the machine that ran them, as busy as it was."
    )
    cost = Section("cost", "Cost against depth", text, plot_cost(results))
    return [*_similarity(results), *_scores(results), *_pictures(results), cost]


def _similarity(results: Results) -> Iterator[Section]:
    text = (
        "Mean cosine of all pairs of tokens after each block, over whole held-out samples. Lines are means over seeds, "
        "bands reach from the lowest seed to the highest. Dashed: before training."
    )
    yield Section("similarity_over_depth", "Similarity over depth", text, plot_over_depth(results))
    text = f"Similarity after the last block of each shape, at equal parameters. {INTERVALS} Dashed: before training."
    figure = plot_against_depth(results, "similarity", before="similarity_untrained")
    yield Section("similarity_against_depth", "Last-layer similarity against depth", text, figure)
    text = (
        "Similarity after the last block while training goes on, on whole held-out samples whatever training masks; "
        "thin lines are seeds."
    )
    yield Section("similarity_in_training", "Similarity along training", text, plot_training(results))
    if any(which in one.profiles for one in results.done for which in ELSEWHERE if which != WHOLE):
        text = "The same on training samples, and at the length that masked training sees. Lines are means over seeds."
        yield Section("similarity_elsewhere", "Training samples, and masked length", text, plot_elsewhere(results))


def _scores(results: Results) -> Iterator[Section]:
    if results.has("accuracy"):
        text = f"Held-out accuracy: masked objectives after fine-tuning, supervised ones as trained. {INTERVALS}"
        yield Section("accuracy", "Accuracy against depth", text, plot_against_depth(results, "accuracy"))
    names = [name for name in ("nearest_neighbours", "linear_probe", "effective_rank") if results.has(name)]
    if names:
        text = (
            "The encoder before any fine-tuning: nearest neighbours after the final norm, the best layer for a linear "
            f"probe, and the effective rank of the tokens of a sample after the last block. {INTERVALS}"
        )
        yield Section("frozen_features", "Frozen features against depth", text, plot_row(results, names))
    names = [name for name in ("loss", "masked_accuracy") if results.has(name)]
    if names:
        text = f"How well the hidden part of held-out samples is predicted. {INTERVALS}"
        yield Section("masked_objective", "The masked objective against depth", text, plot_row(results, names))


def _pictures(results: Results) -> Iterator[Section]:
    """Of the cells of the first seed that has any, for cells of one seed hold out the same images."""
    seed = next(seed for seed in results.study.seeds if any(one.cell.seed == seed for one in results.done))
    cells = [one for one in results.done if one.cell.seed == seed and (one.folder / "pictures.npz").is_file()]
    loaded = [(one, dict(np.load(one.folder / "pictures.npz"))) for one in cells]
    drawn = [(one, arrays) for one, arrays in loaded if "reconstructions" in arrays]
    where = f"Cells of seed {seed}; for the other seeds see pictures.npz in their folders."
    if drawn:
        text = f"Held-out images, what the mask leaves of them, and what each cell makes of that. {where}"
        yield Section("reconstructions", "Reconstructions of the same images", text, plot_reconstructions(drawn))
    for number in range(len(loaded[0][1]["images"]) if loaded else 0):
        text = f"Cosine of each patch to the one in the frame, by relative depth. {where}"
        heading = f"Similarity maps of the same image, {number + 1}"
        yield Section(f"maps_{number + 1}", heading, text, plot_maps(loaded, number))
