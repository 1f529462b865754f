"""A study file is read strictly, and its grid is what it says."""

from dataclasses import replace

import pytest

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.study.changes import add_axes
from bamboo.study.folders import extended, load_stored, store
from bamboo.study.reading import read_study, study_of
from bamboo.study.stages import run_config
from tests.conftest import write_images
from tests.runs import CONFIGS

from .tiny import MAE, SHAPES, SUPERVISED, TINY, tiny, written

FILES = sorted(path.name for path in CONFIGS.glob("study/*.yaml"))
LARGE = ("imagenet_base.yaml", "text_shapes.yaml", "lengths.yaml", "cifar10.yaml")
"""Whose models take half a minute to build, whose data would have to be made first, and what another one does too."""


def test_the_grid_is_shapes_times_objectives_times_seeds_seed_by_seed(tmp_path):
    cells = tiny(tmp_path, seeds=2).cells()
    assert [cell.number for cell in cells] == list(range(8))
    assert [cell.name for cell in cells[:4]] == [
        "mae-2x64-seed0",
        "mae-8x32-seed0",
        "supervised-2x64-seed0",
        "supervised-8x32-seed0",
    ]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4


def test_an_axis_multiplies_the_objectives_that_have_its_key_and_acts_on_the_first_stage_that_has_it(tmp_path):
    study = add_axes(tiny(tmp_path), ["pool", "token", "avg"])
    assert [cell.name for cell in study.cells()] == [
        f"{objective}-{shape}-pool_{pool}-seed0"
        for pool in ("token", "avg")
        for objective in ("mae", "supervised")
        for shape in ("2x64", "8x32")
    ]
    masked, supervised = study.cells()[4], study.cells()[6]
    assert study.pretraining(masked) == "mae-2x64-seed0"
    assert study.pretraining(supervised) == supervised.name == "supervised-2x64-pool_avg-seed0"
    assert "pool" not in run_config(study, masked, tmp_path, "train")["model"]["init_args"]
    for cell, stage in ((masked, "then"), (supervised, "train")):
        assert run_config(study, cell, tmp_path, stage)["model"]["init_args"]["pool"] == "avg"
    both = add_axes(study, ["batch_size", "64", "128", "model.init_args.recipe.base_lr", "1e-3", "2e-3"])
    assert both.axes["batch_size"] == [64, 128]
    assert both.axes["model.init_args.recipe.base_lr"] == [1e-3, 2e-3]
    assert len(both.cells()) == 2 * 2 * 2**3


def test_the_words_of_yaml_are_values_of_an_axis(tmp_path):
    scales = ["model.init_args.norm_pix", "false", "true", "model.init_args.layer_scale", "null", "0.1"]
    study = add_axes(tiny(tmp_path), scales)
    assert [*study.axes.values()] == [[False, True], [None, 0.1]]
    model = run_config(study, study.cells()[-1], tmp_path, "train")["model"]["init_args"]
    assert (model["norm_pix"], model["layer_scale"]) == (True, 0.1)


def test_lists_are_values_of_an_axis_also_in_a_folder_that_is_there(tmp_path):
    betas = "model.init_args.recipe.betas"
    study = add_axes(tiny(tmp_path), [betas, "0.9,0.95", "[0.9,0.99]"])
    assert study.axes == {betas: [[0.9, 0.95], [0.9, 0.99]]}
    store(study, tmp_path / "out")
    assert extended(add_axes(tiny(tmp_path), [betas, "0.9,0.99", "0.9,0.999"]), tmp_path / "out").axes == {
        betas: [[0.9, 0.95], [0.9, 0.99], [0.9, 0.999]]
    }
    assert run_config(study, study.cells()[-1], tmp_path, "train")["model"]["init_args"]["recipe"]["betas"] == [
        0.9,
        0.99,
    ]


def test_an_axis_without_values_is_half_once_and_twice_what_is_configured(tmp_path):
    assert add_axes(tiny(tmp_path), ["batch_size"]).axes == {"batch_size": [16, 32, 64]}


def test_sizes_of_batches_are_compared_as_they_are(tmp_path):
    study = tiny(tmp_path)
    recipe = study.objectives["supervised"].config["model"]["init_args"]["recipe"]
    recipe["effective_batch"] = 64
    size = "data.init_args.batch_size"
    for axes, tried, effective in (
        ({}, None, 64),
        ({"batch_size": (16, 32)}, None, 0),
        ({size: (16, 32)}, None, 0),
        ({}, {size: 16}, 0),
    ):
        config = run_config(study, replace(study, axes=axes).cells()[-1], tmp_path, "train", tried)
        assert config["model"]["init_args"]["recipe"]["effective_batch"] == effective


def test_a_stored_study_is_read_back_whole(tmp_path):
    study = add_axes(tiny(tmp_path), ["pool", "token", "avg"])
    store(study, tmp_path / "out")
    assert load_stored(tmp_path / "out") == study


def test_axes_may_be_given_one_by_one_or_in_a_row(tmp_path, capsys):
    words = ["study", "--config", str(written(tmp_path)), "--list"]
    for name, axes in (
        ("a", ["--axis", "pool", "avg", "--axis", "batch_size", "16", "32"]),
        ("b", ["--axis", "pool", "avg", "batch_size", "16", "32"]),
    ):
        assert main([*words, "--out", str(tmp_path / name), *axes]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 * 8
    assert listed[:8] == listed[8:]


def test_another_study_in_the_same_folder_is_refused(tmp_path):
    store(tiny(tmp_path), tmp_path / "out")
    store(tiny(tmp_path, workers=7), tmp_path / "out")  # which changes no result
    with pytest.raises(InputError, match=r"holds another study, see .*: threads is 2, not 1"):
        store(tiny(tmp_path, threads=2), tmp_path / "out")


def test_seeds_shapes_and_values_of_axes_are_added_to_the_study_of_a_folder(tmp_path, capsys):
    out = tmp_path / "out"
    first = store(add_axes(tiny(tmp_path, shapes=SHAPES[:1]), ["pool", "token"]), out)
    words = ["study", "--config", str(written(tmp_path)), "--out", str(out), "--list"]
    assert main([*words, "--seeds", "2", "--axis", "pool", "avg"]) == 0
    assert f"added to {out}: seeds 1; shapes 8x32; axis pool avg" in capsys.readouterr().out
    assert load_stored(out) == first  # a list changes nothing
    grown = store(add_axes(tiny(tmp_path, seeds=2), ["pool", "avg"]), out)
    assert {cell.name for cell in grown.cells()} > {cell.name for cell in first.cells()}
    assert len(grown.cells()) == 2 * 2 * 2 * 2
    assert load_stored(out) == grown
    assert main(["study", "--out", str(out), "--list", "--seeds", "1"]) == 0  # which takes nothing away
    assert len(capsys.readouterr().out.splitlines()) == 16
    with pytest.raises(InputError, match=r"its axes are \[\], not \['pool'\]"):
        store(tiny(tmp_path, seeds=3), out)


def test_a_study_of_a_folder_keeps_the_numbers_of_its_cells_and_the_seed_that_tunes(tmp_path):
    study = tiny(tmp_path, shapes=SHAPES[::-1], seeds=[3, 1])
    store(study, tmp_path / "out")
    assert extended(study, tmp_path / "out").cells() == study.cells()
    assert extended(replace(study, seeds=[0, 1]), tmp_path / "out").seeds == [3, 1, 0]
    middle = tiny(tmp_path, shapes=[{"depth": 4, "width": 45, "heads": 1}], seeds=[3])
    assert [*extended(middle, tmp_path / "out").shapes] == ["2x64", "4x45", "8x32"]


def test_shapes_of_unequal_parameters_are_refused_unless_told_otherwise(tmp_path, capsys):
    shapes = [SHAPES[0], {"depth": 9, "width": 32, "heads": 1}]
    with pytest.raises(InputError, match=r"shape 9x32 has \+14.4% of the parameters of 2x64"):
        tiny(tmp_path, shapes=shapes)
    assert tiny(tmp_path, shapes=shapes, allow_unequal=True).allow_unequal
    path = str(written(tmp_path, shapes=shapes))
    assert main(["study", "--config", path, "--out", str(tmp_path / "out"), "--list"]) == 2
    assert main(["study", "--config", path, "--out", str(tmp_path / "out"), "--list", "--allow-unequal"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": []}, "study.yaml: shape: Key 'shape' not in 'Study'"),
        ({"shapes": []}, "shapes must be a list of at least one, got []"),
        ({"shapes": ["vit-bas"]}, "unknown shape 'vit-bas': did you mean"),
        (
            {"shapes": [{"depth": 2, "width": 64}]},
            "numbers depth, width, heads and, if it is not 4, mlp_ratio, got {'depth': 2, 'width': 64}",
        ),
        ({"shapes": [{"depht": 2}]}, "got {'depht': 2}"),
        ({"shapes": [*SHAPES, SHAPES[0]]}, "two shapes are called 2x64"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seeds": [-1]}, "seeds must lie between 0 and 2^32 - 1, got -1"),
        ({"seeds": ["one"]}, "seeds[0]: Value 'one' of type 'str' could not be converted to Integer"),
        ({"objectives": {"mae": {**MAE, "kind": "mask"}}}, "unknown kind of objectives.mae 'mask': did you mean"),
        ({"objectives": {"mae": {**MAE, "sets": {}}}}, "objectives.mae.sets: Key 'sets' not in"),
        ({"objectives": {"mae": {**MAE, "config": "none.yaml"}}}, "cannot read the configuration"),
        ({"objectives": {"mae": {"kind": "masked", "config": {"a": 1}}}}, "names no model.class_path"),
        ({"evaluation": {"sample": 1}}, "evaluation.sample: Key 'sample' not in"),
        (
            {"evaluation": {"samples": "many"}},
            "evaluation.samples: Value 'many' of type 'str' could not be converted to Integer",
        ),
        ({"axes": {"pool": "token"}}, "axes.pool: Value 'token' (str) is incompatible"),
        ({"axes": {"model.init_args.pol": [1]}}, "no objective configures the key model.init_args.pol"),
        ({"evaluation": {"measures": ["ranks"]}}, "evaluation.measures must hold token_similarity"),
        ({"axes": {"model.init_args.recipe": [{"base_lr": 1}]}}, "axes.model.init_args.recipe: a value is a mapping"),
        ({"axes": {"pool": []}}, "axes.pool must be at least 1, got 0"),
        ({"budget": {"flops": 1, "samples": 1}}, "budget has one unit, got samples and flops"),
        ({"budget": {"flops": 0}}, "budget.flops must be positive, got 0"),
        ({"budget": {"flops": 1, "then": 1}}, "budget.then must lie between 0 and 1, got 1"),
        ({"budget": {"epochs": 1}}, "budget.epochs: Key 'epochs' not in"),
        ({"tune": {"keys": {"base_lr": [1]}}}, "tune takes a share of the budget: give one"),
        ({"budget": {"samples": 9}, "tune": {"keys": {"base_lr": []}}}, "tune.keys.base_lr must be at least 1, got 0"),
        (
            {
                "budget": {"samples": 9},
                "tune": {"keys": {"model.init_args.drop_path": [0.1]}},
                "objectives": {"mae": MAE},
            },
            "model.init_args.drop_path: no objective trains by a key of that name",
        ),
        (
            {"budget": {"samples": 9}, "tune": {"keys": {"pool": ["avg"]}}, "axes": {"pool": ["avg"]}},
            "model.init_args.pool is set by two axes, or by an axis and by tune: name it once",
        ),
        (
            {"axes": {"base_lr": [1e-3, 2e-3], "model.init_args.recipe.base_lr": [3e-3]}},
            "model.init_args.recipe.base_lr is set by two axes",
        ),
        (
            {
                "budget": {"samples": 9},
                "tune": {"keys": {"model.init_args.recipe.base_lr": [3e-3]}},
                "axes": {"base_lr": [1e-3]},
            },
            "model.init_args.recipe.base_lr is set by two axes, or by an axis and by tune",
        ),
        ({"margins": {"acuracy": 0.1}}, "unknown number of margins 'acuracy': did you mean"),
        ({"known_sd": {"accuracy": 0.0}}, "known_sd.accuracy must be above 0, got 0.0"),
        ({"equal": "memory"}, "unknown equal 'memory'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"launch": "torchrun"}, "launch: Invalid value"),
        ({"objectives": {"mae": {**MAE, "then": {}}}}, "objectives.mae.then has no config"),
        ({"objectives": {"mae": {**MAE, "config": "pretrain/quick"}}}, "unknown configuration 'pretrain/quick'"),
    ],
)
def test_a_mistake_in_a_study_file_is_one_line_that_names_the_file(tmp_path, change, message):
    with pytest.raises(InputError) as caught:
        tiny(tmp_path, **change)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "study.yaml"))
    assert "\n" not in str(caught.value)


def test_configurations_are_named_as_in_fit_or_by_a_path_relative_to_the_file(tmp_path):
    named = tiny(tmp_path, objectives={"mae": {**MAE, "config": "pretrain/quickstart"}})
    assert named.objectives == tiny(tmp_path, objectives={"mae": MAE}).objectives
    (tmp_path / "own.yaml").write_text(f"base: {CONFIGS / 'pretrain/quickstart.yaml'}\ntrainer: {{max_epochs: 5}}")
    relative = tiny(tmp_path, objectives={"mae": {"kind": "masked", "config": ["own.yaml"]}})
    assert relative.objectives["mae"].config["trainer"]["max_epochs"] == 5


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    path, out = str(written(tmp_path)), str(tmp_path / "out")
    for words, message in (
        (["--out", out], "holds no study"),
        (["--config", path, "--out", out, "--cell", "4"], "there is no cell 4: the study has cells 0 to 3"),
        (["--config", path, "--out", out, "--axis", "5"], "unknown axis '5'"),
        (["--config", path, "--out", out, "--data", "photographs"], "--data: this study reads no folder"),
        (["--config", path, "--out", out, "--axis", "pool"], "axis pool needs values"),
        (["--config", path, "--out", out, "--seeds", "0"], "seeds must be at least 1"),
        (["--config", path, "--out", out, "--workers", "0"], "workers must be at least 1"),
    ):
        assert main(["study", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_mistake_in_a_configuration_shows_before_anything_runs(tmp_path, capsys):
    wrong = {**SUPERVISED, "set": {**SUPERVISED["set"], "trainer": {"max_epoch": 1}}}
    path = written(tmp_path, objectives={"supervised": wrong})
    assert main(["study", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "objective supervised: " in error
    assert "max_epoch" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["name: [", "- 1", ""])
def test_a_damaged_study_of_a_folder_is_one_line(tmp_path, text, capsys):
    (tmp_path / "study.yaml").write_text(text)
    assert main(["study", "--out", str(tmp_path), "--list"]) == 2
    assert str(tmp_path / "study.yaml") in capsys.readouterr().err


def test_a_mistake_names_the_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("nam: x")
    with pytest.raises(InputError, match=r"study.yaml: nam: Key 'nam' not in 'Study'"):
        read_study(path)
    with pytest.raises(InputError, match="the study has no name"):
        study_of({key: value for key, value in TINY.items() if key != "name"})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images that fills a batch of the shipped study."""
    root = tmp_path_factory.mktemp("images")
    for seed, (split, count) in enumerate((("train", 64), ("val", 4))):
        for name in ("ant", "bee"):
            write_images(root / split / name, count, seed=seed)
    return root


# Of the one with the most kinds of cells the others tell the same.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "branches.yaml")) for name in FILES]
)
def test_every_shipped_study_can_be_listed_and_its_cost_be_told(name, images, tmp_path, capsys):
    words = ["study", "--config", str(CONFIGS / "study" / name), "--out", str(tmp_path), "--seeds", "1"]
    study = read_study(CONFIGS / "study" / name)
    if "???" in str(study.to_dict()) and study.train_samples is None:
        assert main([*words, "--dry-run"]) == 2
        assert "with --data FOLDER" in capsys.readouterr().err
    words += ["--data", str(images)] if name in ("images_folder.yaml", "cifar10.yaml") else []
    assert main([*words, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(study.cells()) // len(study.seeds)
    if name in LARGE:
        return
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(line.split()[-1] in told for line in listed)
    assert "FLOPs" in told


@pytest.mark.slow
def test_the_cost_of_the_study_at_full_size_is_told_without_its_data(tmp_path, capsys):
    config = str(CONFIGS / "study/imagenet_base.yaml")
    assert main(["study", "--config", config, "--out", str(tmp_path), "--dry-run"]) == 0
    assert "mae-bamboo-base-seed0" in capsys.readouterr().out
