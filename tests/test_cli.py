"""What a person types, and what bad input gets: one line on standard error, exit code 2, nothing written."""

import pickle
import subprocess
import sys
import time

import pytest
import torch

import bamboo
from bamboo.cli import main
from bamboo.fit.compose import compose_arguments
from bamboo.fit.parse_errors import one_line
from tests.conftest import write_images
from tests.runs import CONFIGS, QUARTER, fit, last, load


def run(capsys, *args):
    code = main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line(code, err, *parts):
    lines = [line for line in err.splitlines() if "Seed set" not in line]
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("bamboo: error: ")
    for part in parts:
        assert part in lines[0]


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys; from bamboo.cli import main; main(['--help']);"
        "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    )
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - started < 10
    for verb in ("fit", "validate", "shapes", "reconstruct", "export"):
        assert f"\n  {verb}" in out
    assert out.rstrip().endswith("[]")


def test_the_version_is_that_of_the_package(capsys):
    assert run(capsys, "--version") == (0, f"bamboo {bamboo.__version__}\n", "")


@pytest.mark.parametrize("verb", ["shapes", "reconstruct", "export"])
def test_every_command_explains_its_options(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert f"usage: bamboo {verb}" in out


def test_shapes_prints_the_table_with_exact_counts(capsys):
    code, out, _ = run(capsys, "shapes")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("bamboo-base")).split()
    assert row[:6] == ["bamboo-base", "48x384", "6", "16", "85.2", "85.5"]
    assert "could not be obtained" in out


def test_shapes_prints_the_ladder_and_the_optimum_of_levine(capsys):
    code, out, _ = run(capsys, "shapes", "--budget", "vit-base", "--head-dim", "64")
    assert code == 0
    rungs = [line.split()[0] for line in out.splitlines() if line[:1].isdigit()]
    assert rungs == ["12x768", "14x704", "17x640", "21x576", "27x512", "35x448", "48x384"]
    assert "optimum for 85 M parameters at 23 x 555" in out


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["reconstuct"], ["unknown command 'reconstuct'", "'reconstruct'"]),
        (["shapes", "--budgte", "x"], ["budgte", "did you mean 'budget'"]),
        (["shapes", "--budget", "vit-bse"], ["'vit-base'"]),
        (["shapes", "--head-dim", "wide"], ["head_dim", "int", "wide"]),
        (["export"], ["required", "checkpoint", "out"]),
        (["export", "nowhere.ckpt", "--out", "o", "--format", "onnx"], ["format", "onnx"]),
        (["export", "nowhere.ckpt", "--out", "o"], ["nowhere.ckpt", "missing"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["fit", "--config"], ["--config needs"]),
    ],
)
def test_bad_words_get_one_line(capsys, args, parts):
    code, _, err = run(capsys, *args)
    assert_one_line(code, err, *parts)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model.init_args.mask_ration", "0.5"], ["mask_ration", "did you mean 'mask_ratio'"]),
        (["--model.init_args.mask_ratio", "much"], ["model.init_args.mask_ratio", "float", "much"]),
        (["--model.init_args.shape", "bambo-base"], ["'bamboo-base'"]),
        (["--model.init_args.decoder", "cros"], ["decoder", "'self', 'cross'", "cros"]),
        (["--model.class_path", "bamboo.vision.Foo"], ["bamboo.vision", "Foo"]),
        (["--trainer.max_epochz", "3"], ["max_epochz", "did you mean 'max_epochs'"]),
        (["--trainer.max_epochs", "many"], ["trainer.max_epochs: expected int, got many"]),
        (["--trainer.strategy", "nope"], ["You selected an invalid strategy name: `strategy='nope'`"]),
        (["--data.init_args.image_size", "64"], ["(1, 64, 64)", "(1, 32, 32)", "image_size"]),
        (["--data.init_args.batch_size", "5000"], ["5000", "1437"]),
        (["--ckpt_path", "last"], ["no run to continue"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
    ],
)
def test_a_bad_run_gets_one_line(capsys, tmp_path, monkeypatch, args, parts):
    monkeypatch.chdir(tmp_path)
    code = fit("--trainer.max_epochs", "1", *args)
    assert_one_line(code, capsys.readouterr().err, *parts)
    assert not list(tmp_path.rglob("*.ckpt"))


def folder_run(root, *args):
    small = ["--model.init_args.image_size", "32", "--model.init_args.patch_size", "8"]
    batch = ["--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"]
    return fit("--data.init_args.root", str(root), *small, *batch, *args, config="pretrain/image_folder.yaml")


def test_who_interrupts_a_command_gets_one_line(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bamboo.cli, "_call", interrupted)
    assert run(capsys, "shapes") == (130, "", "bamboo: interrupted\n")


def test_a_missing_folder_gets_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(folder_run(tmp_path / "nowhere"), capsys.readouterr().err, "nowhere")


def test_a_required_option_that_is_missing_is_named(capsys):
    code = fit(config="pretrain/image_folder.yaml")
    assert_one_line(code, capsys.readouterr().err, "data", "root")


def test_a_corrupt_image_is_skipped_named_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 20)
    (tmp_path / "images" / "007.jpg").write_bytes(b"no image")
    assert folder_run(tmp_path / "images", "--trainer.max_epochs", "2", "--data.init_args.val_fraction", "0.2") == 0
    warnings = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(warnings) == 1
    assert "007.jpg" in warnings[0]


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_checkpoint_that_cannot_be_resumed_gets_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.max_steps", "1", "--trainer.callbacks", "[]") == 0
    whole = last(tmp_path).read_bytes()
    capsys.readouterr()
    other_shape = ["--model.init_args.shape", '{"depth": 2, "width": 64, "heads": 2}']
    for content, args, part in (
        (whole[: len(whole) // 2], [], "bad.ckpt"),
        (pickle.dumps(Code()), [], "bad.ckpt"),
        (whole, other_shape, "encoder"),
    ):
        (tmp_path / "bad.ckpt").write_bytes(content)
        code = fit("--trainer.max_epochs", "2", "--ckpt_path", "bad.ckpt", *args)
        captured = capsys.readouterr()
        assert_one_line(code, captured.err, part)
        assert "code ran" not in captured.out
        assert last(tmp_path).read_bytes() == whole


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_last_checkpoint(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil = ["--trainer.callbacks+=tests.interruption.SpoilBefore", "--trainer.callbacks.step=5"]
    code = fit("--trainer.max_epochs", "1", "--checkpoint.every_n_train_steps", "3", *QUARTER, *spoil)
    err = capsys.readouterr().err
    assert_one_line(code, err, "not finite at step 5", "mae.encoder.blocks.1.mlp.fc1.weight", str(last(tmp_path).name))
    content = load(last(tmp_path))
    assert content["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values() if torch.is_tensor(tensor))


def test_a_run_needs_no_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.callbacks", "null", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0") == 0


def printed_config(capsys, name, *args):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS / name), *args, "--print_config"])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_print_config_shows_what_a_run_would_use(capsys):
    out = printed_config(capsys, "pretrain/imagenet.yaml", "--data.init_args.root=x")
    assert "shape: bamboo-base" in out
    assert "image_size: 224" in out


def test_null_is_a_value_of_any_option_of_model_and_data(capsys):
    nulls = ["--model.init_args.recipe.warmup_share=null", "--data.init_args.shots", "null"]
    out = printed_config(capsys, "pretrain/text_one_day.yaml", "--data.init_args.root=x", *nulls[:1])
    assert "warmup_share: null" in out
    words = compose_arguments(["fit", "--config", "pretrain/quickstart", *nulls, "--trainer.max_time", "null"])
    assert words[3:] == ["--trainer.max_time", "null"]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'bamboo.vision.pretraining.MAEPretraining':
        Parser key "recipe.warmup_share":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'float'>, <class 'NoneType'>]
          Errors:
            - Expected a <class 'float'>
            - Expected a <class 'NoneType'>
          Given value type: <class 'str'>
          Given value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='recipe.warmup_share', val='x')""",
            "model.init_args.recipe.warmup_share: expected float, got x",
        ),
        ("unrecognized arguments: --trainer.max_epochz 3", "the command line has no option 'trainer.max_epochz'"),
        ("something else", "something else"),
    ],
)
def test_a_message_of_jsonargparse_becomes_one_line(message, line):
    assert one_line(message, []).startswith(line)


def test_a_cluster_is_a_matter_of_three_options(capsys):
    cluster = ["--trainer.devices", "8", "--trainer.num_nodes", "8", "--trainer.strategy", "ddp"]
    out = printed_config(capsys, "pretrain/imagenet.yaml", "--data.init_args.root=x", *cluster)
    for line in ("devices: '8'", "num_nodes: 8", "strategy: ddp"):
        assert line in out


@pytest.mark.parametrize(
    "strategy", ["fsdp_cpu_offload", "deepspeed_stage_3", "lightning.pytorch.strategies.ModelParallelStrategy"]
)
def test_a_strategy_that_cuts_weights_up_is_refused(capsys, tmp_path, monkeypatch, strategy):
    monkeypatch.chdir(tmp_path)
    assert_one_line(fit("--trainer.strategy", strategy), capsys.readouterr().err, "trainer.strategy", "ddp")
    assert not list(tmp_path.iterdir())


def test_there_is_no_verb_for_a_test_set_that_nothing_reads(capsys):
    code, _, err = run(capsys, "test", "--config", str(CONFIGS / "pretrain/quickstart.yaml"))
    assert_one_line(code, err, "unknown command 'test'")


def test_an_interpolated_key_follows_what_the_command_line_says(capsys):
    changed = ["--model.init_args.image_size=64", "--seed_everything", "7"]
    out = printed_config(capsys, "pretrain/quickstart.yaml", *changed)
    assert out.count("image_size: 64") == 2
    assert out.count("seed: 7") == 2
