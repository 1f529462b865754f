"""Two gloo processes do what one process does with twice the batch, and what one of them sees stops both."""

import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed, multiprocessing

import bamboo.callbacks
from bamboo.callbacks import NonFiniteGuard
from bamboo.processes import from_first_process, of_all_processes
from bamboo.recipes import Recipe
from bamboo.vision import folders
from bamboo.vision.data import ImageFolder
from bamboo.vision.images import Files, Unreadable
from tests.runs import CONFIGS, ROOT, TINY, fit, last, load, scalars
from tests.test_steps import QUIET, Images, tiny_mae

IMAGES = [
    *("--data.init_args.num_workers", "0", "--model.init_args.image_size", "16", "--model.init_args.patch_size", "4"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
    *("--model.init_args.recipe.effective_batch", "16"),
    *("--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"),
]


def test_two_processes_train_evaluate_and_accumulate_as_one(tmp_path, image_root, monkeypatch, capsys):
    """The same images in a batch over all processes, so the same masks; 13 images to validate on."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    monkeypatch.chdir(one)
    words = [*IMAGES, "--data.init_args.root", str(image_root)]
    assert fit(*words, "--data.init_args.batch_size", "8", config="pretrain/image_folder.yaml") == 0
    outputs = [capsys.readouterr().out]
    command = [sys.executable, "-m", "bamboo", "fit", "--config", str(CONFIGS / "pretrain/image_folder.yaml"), *TINY]
    halves = ["--data.init_args.batch_size", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words, *halves], cwd=two, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    outputs.append(done.stdout)
    assert "16 samples a step (4 x 2 processes x 2 accumulated), 4 steps" in done.stdout

    gradients = [torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    checkpoints = [last(folder, name="image-folder") for folder in (one, two)]
    weights = [load(checkpoint)["state_dict"] for checkpoint in checkpoints]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)
    for tag in ("train/lr", "val/samples", "val/loss"):
        logged = [scalars(checkpoint.parent.parent, tag) for checkpoint in checkpoints]
        assert logged[1] == pytest.approx(logged[0], abs=1e-4), tag
        assert max(logged[0].values()) > 0
    assert set(scalars(checkpoints[1].parent.parent, "val/samples").values()) == {13}
    probed = [re.findall(r"nearest neighbours, (.*): +([\d.]+) %", out) for out in outputs]
    assert [name for name, _ in probed[0]] == ["raw pixels", "untrained encoder", "trained encoder"]
    assert probed[0][:2] == probed[1][:2]


def test_two_processes_start_from_weights_as_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs", "1", "--trainer.callbacks", "[]", "--data.init_args.fraction", "0.05"]
    short += ["--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"]
    assert fit(*short, "--data.init_args.batch_size", "8") == 0
    start = ["--model.init_args.init_from", str(last(tmp_path)), "--model.init_args.recipe.effective_batch", "16"]
    assert fit(*short, *start, "--data.init_args.batch_size", "16") == 0
    words = [*TINY, *short, *start, "--data.init_args.batch_size", "8", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "bamboo", "fit", "--config", str(CONFIGS / "pretrain/quickstart.yaml"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--trainer.strategy", "ddp"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("50 tensors loaded") == 1
    before, one, two = (load(last(tmp_path, version))["state_dict"] for version in range(3))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
    assert any((one[name] - before[name]).abs().max() > 3e-4 for name in one)


def outcome(call):
    """What `call` gives, or the error that it raises, in words."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def data_of_a_folder(rank, root):
    """Who walks the folders, what each process gets of it, and what each is told of what only one can see."""
    walks, scan = [], folders.scan
    folders.scan = lambda folder, *args: walks.append(str(folder)) or scan(folder, *args)
    data = ImageFolder(str(root), predict_root=str(root / "val"))
    data.setup("fit")
    results = {"names": [data.sources.val.name(i) for i in range(13)], "classes": data.classes, "walks": len(walks)}
    walks.clear()
    data.setup("predict")
    results |= {"predicted": [data.predict_source().name(i) for i in range(13)], "predict_walks": len(walks)}
    results["missing"] = outcome(ImageFolder(str(root / "none")).setup)
    results["unexpected"] = outcome(lambda: from_first_process(lambda: 1 / rank))
    results["rows"] = [rows.tolist() for rows in of_all_processes(torch.full((rank + 1, 2), rank))]
    read = Files.read
    if rank == 1:  # as if the files were on the other machine alone

        def unreadable(files, index):
            raise Unreadable(files.name(index))

        Files.read = unreadable
    results["elsewhere"] = outcome(ImageFolder(str(root)).setup)
    Files.read = read
    return results


def train(module, data, *callbacks, **options):
    options = {"logger": False, "use_distributed_sampler": False, "max_epochs": 1, **QUIET, **options}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", callbacks=[*callbacks], **options)
    error = outcome(lambda: trainer.fit(module, datamodule=data))
    return trainer.global_step, error


class SaveRates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def a_bad_batch_of_one_process(rank):
    bamboo.callbacks.reads_at_once = lambda device: False
    module = tiny_mae()
    steps, error = train(module, Images(spoil={2: float("nan")} if rank == 1 else {}), NonFiniteGuard())
    return {"steps": steps, "error": error, "finite": all(w.isfinite().all().item() for w in module.parameters())}


def a_run_that_a_clock_ends():
    rates = SaveRates()
    recipe = Recipe(base_lr=1e-3, schedule="linear", warmup_share=0.5)
    train(tiny_mae(recipe=recipe), Images(), rates, max_epochs=-1, max_time=timedelta(seconds=1.5))
    return rates.rates


def meet(rank, folder, root):
    """What one of two processes sees, saved for the tests."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GROUP_RANK": "0"}
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=60)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    results = data_of_a_folder(rank, root)
    results |= {"guard": a_bad_batch_of_one_process(rank), "rates": a_run_that_a_clock_ends()}
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory, image_root):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("meeting")
    start = "spawn" if torch.cuda.is_initialized() else "fork"  # which imports nothing anew
    multiprocessing.start_processes(meet, (folder, image_root), nprocs=2, start_method=start)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_one_process_walks_the_folders_and_the_others_get_its_list(seen, image_root):
    assert [results["walks"] for results in seen] == [2 * 3, 0]  # train/ and val/, with two classes in each
    assert [results["predict_walks"] for results in seen] == [3, 0]
    expected = sorted(map(str, (image_root / "val").rglob("*.jpg")))
    for results in seen:
        assert results["names"] == results["predicted"] == expected
        assert results["classes"] == ("ant", "bee")


def test_what_fails_on_one_process_is_raised_by_all_so_that_none_hangs(seen, image_root):
    for results in seen:
        assert results["missing"].startswith(f"InputError: {image_root / 'none'}: no such folder")
        assert "ZeroDivisionError" in results["unexpected"]
        assert results["elsewhere"].startswith("InputError: process 1 on ")
        assert "none of 32 images can be read" in results["elsewhere"]


def test_uneven_rows_are_gathered_whole(seen):
    assert [results["rows"] for results in seen] == [[[[0, 0]], [[1, 1], [1, 1]]]] * 2


def test_two_processes_of_which_one_sees_a_bad_batch_stop_together(seen):
    first, second = (results["guard"] for results in seen)
    assert first == second
    assert (first["steps"], first["finite"]) == (3, True)
    assert first["error"].startswith("InputError: the loss is not finite at step 2: ")
    assert "is the batch's 'image' (process 1 of 2); " in first["error"]


def test_all_processes_follow_the_clock_of_the_first(seen):
    first, second = (results["rates"] for results in seen)
    assert len(first) > 2
    assert len(set(first)) == len(first)
    assert first == second
