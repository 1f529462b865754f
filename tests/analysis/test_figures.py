"""Figures show the numbers of the profile, and what is said of the theory is what was measured."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bamboo.analysis
from bamboo.analysis import capture, compare, profile
from bamboo.analysis.captures import State
from bamboo.analysis.command import profile_command
from bamboo.analysis.maps import plot_maps, similarity_maps
from bamboo.analysis.plots import SHARES, colours, plot_curves, plot_shares, plot_spectra, save_figure
from bamboo.analysis.profiles import Profile
from bamboo.analysis.recording import Key
from bamboo.cli import make_parser
from bamboo.errors import InputError

from .tiny import DEPTH, TEXT, images, sentences, timm_vit


def made(label: str, rows: dict[tuple[str, str], list[float]], baseline: bool = False) -> Profile:
    """A profile of given means, over layers 1, 2, ..."""
    keys = tuple(Key(at, name, i) for (at, name), values in rows.items() for i in range(1, len(values) + 1))
    values = np.tile(np.concatenate(list(rows.values())).astype(np.float32), (3, 1))
    return Profile(label, len(next(iter(rows.values()))), keys, values, baseline=baseline)


def test_lines_are_the_curves_and_marks_the_state_after_the_norm():
    found = profile(timm_vit(), [images()])
    figure = plot_curves([found], ["token_similarity", "update_ratio"])
    first, attention, mlp = figure.axes
    line, mark = first.get_lines()
    np.testing.assert_allclose(line.get_xdata(), np.arange(DEPTH + 1) / DEPTH)
    np.testing.assert_allclose(line.get_ydata(), found.curve().mean)
    np.testing.assert_allclose(mark.get_ydata(), found.curve(position="norm").mean)
    assert (attention.get_title(), mlp.get_title()) == ("norm of the update: attention", "norm of the update: MLP")
    absolute = plot_curves([found], ["token_similarity"], relative=False).axes[0].get_lines()[0]
    np.testing.assert_allclose(absolute.get_xdata(), np.arange(DEPTH + 1))


def test_shares_are_stacked_from_what_is_common_and_similarity_runs_over_the_lower_two():
    found = profile(timm_vit(), [images(6)], label="a")
    figure = plot_shares([found, profile(TEXT["BERT"](), [sentences()], tokens="all", label="b")])
    left, right = figure.axes
    heights = np.cumsum([found.curve(name).mean for name in SHARES], axis=0)
    for area, height in zip(left.collections, heights, strict=True):
        top = [
            area.get_paths()[0].vertices[:, 1][area.get_paths()[0].vertices[:, 0] == x].max() for x in range(DEPTH + 1)
        ]
        np.testing.assert_allclose(top, height, atol=1e-6)
    np.testing.assert_allclose(heights[-1], 1, atol=1e-6)
    line = left.get_lines()[0].get_ydata()
    np.testing.assert_allclose(line, found.curve().mean)
    count = 16
    np.testing.assert_allclose(line, (count * heights[1] - 1) / (count - 1), atol=1e-5)
    assert len(right.collections) == 3  # without positions
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["common share", "share of the sample"]
    with pytest.raises(InputError, match="no shares"):
        plot_shares([made("a", {("stream", "token_norm"): [1, 2]})])


def test_a_baseline_is_dashed_in_the_colour_of_its_model():
    row = {("stream", "token_similarity"): [0.1, 0.2]}
    profiles = [made("a", row), made("a (fresh)", row, True), made("b", row), made("b (fresh)", row, True)]
    chosen = colours(profiles)
    assert chosen[0] == chosen[1] != chosen[2] == chosen[3]
    lines = plot_curves(profiles, ["token_similarity"]).axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]


def test_models_without_a_measure_are_still_in_the_legend():
    with_it, without = made("a", {("stream", "token_norm"): [1, 2]}), made("b", {("stream", "stable_rank"): [1, 2]})
    figure = compare({"a": with_it, "b": without}).plot(["token_norm", "stable_rank"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    with pytest.raises(InputError, match="none of these was measured: spectrum"):
        plot_curves([with_it], ["spectrum"])
    with pytest.raises(InputError, match="no spectrum"):
        plot_spectra([with_it])
    with pytest.raises(InputError, match="nothing to compare"):
        compare({})


def test_the_same_numbers_give_the_same_file(tmp_path: Path):
    found = made("a", {("stream", "token_similarity"): [0.1, 0.9]})
    for name in ("one", "two"):
        save_figure(plot_curves([found], ["token_similarity"]), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]


def test_spectra_show_rings_upwards_and_layers_across():
    found = profile(timm_vit(), [images()], ["spectrum"])
    table = plot_spectra([found]).axes[0].images[0].get_array()
    assert table.shape == (3, DEPTH + 1)
    np.testing.assert_allclose(table[1], found.curve("spectrum/1").mean, rtol=1e-6)


def test_bounds_are_those_of_the_formula():
    model = TEXT["BERT"]()
    found = profile(model, [sentences()], ["bound"], tokens="all")
    block, seen = model.encoder.layer[0], []

    def reducer(state: State) -> None:
        seen.append(state)

    with torch.no_grad(), capture(model, reducer, attention=True):
        model(**sentences())
    first = next(state for state in seen if state.position == "maps")
    value = max(
        torch.linalg.matrix_norm(block.attention.self.value.weight[8 * h : 8 * h + 8], 2).item() for h in range(4)
    )
    out = max(
        torch.linalg.matrix_norm(block.attention.output.dense.weight[:, 8 * h : 8 * h + 8], 2).item() for h in range(4)
    )
    bounds = []
    for row, n in enumerate((12, 5, 9)):
        a = first.attention.logits[row, :, :n, :n].abs().max().item()
        bounds.append(value * out * 4 * np.sqrt(n * np.exp(2 * a) / (np.exp(2 * a) + n - 1)))
    np.testing.assert_allclose(found.curve("attention_bound", "attention").mean[0], np.mean(bounds), rtol=1e-4)
    np.testing.assert_allclose(found.curve("residual_bound", "attention").mean[0], 1 + np.mean(bounds), rtol=1e-4)


def test_maps_are_cosines_of_patches_and_registers_do_not_count():
    model = timm_vit(img_size=(16, 32), reg_tokens=2, no_embed_class=True)
    pixels = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8)
    maps = similarity_maps(model, pixels, "m")
    assert maps.to_patch.shape == maps.to_mean.shape == (2, DEPTH + 1, 4, 8)
    assert maps.centre == (2, 4)
    np.testing.assert_allclose(maps.to_patch[:, :, 2, 4], 1, rtol=1e-5)
    states: list[torch.Tensor] = []
    from bamboo.vision.pixels import PixelScale

    with torch.no_grad(), capture(model, lambda s: states.append(s.tokens) if s.position == "stream" else None):
        model(PixelScale(3)(pixels))
    patches = states[2][1, 3:]
    expected = torch.cosine_similarity(patches, patches.mean(0, keepdim=True)).view(4, 8)
    np.testing.assert_allclose(maps.to_mean[1, 2], expected, rtol=1e-4)
    (picture,) = plot_maps(maps).axes[0].images
    assert picture.get_array().shape == (4 * 18 + 2, 5 * 34 + 2, 3)  # tiles of 16 x 32 and gaps of 2
    with pytest.raises(InputError, match="images of bytes"):
        similarity_maps(model, pixels.float(), "m")


def test_names_are_functions_and_the_command_loads_without_torch():
    assert callable(bamboo.analysis.profile)
    assert callable(bamboo.analysis.capture)
    assert bamboo.analysis.measures.__name__ == "bamboo.analysis.measures"
    with pytest.raises(AttributeError, match="nothing"):
        bamboo.analysis.nothing  # noqa: B018
    code = (
        "import sys, bamboo, bamboo.analysis.command; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_signature_makes_a_command_line():
    parser = make_parser("profile", profile_command)
    arguments = ["model", "--data=photos", "--out=o", "--baseline", "--measures", "ranks", "--image_size=64"]
    parsed = parser.parse_args(arguments)
    assert (parsed.data, parsed.out, parsed.baseline) == ("photos", Path("o"), True)
    assert (parsed.measures, parsed.image_size, parsed.tokens) == (["ranks"], 64, "patches")
    assert "as in masked pretraining" in " ".join(parser.format_help().split())
