"""Two gloo processes do what one process does with twice the batch."""

import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from bamboo.data import from_first_process
from bamboo.finetune.knn import of_all_processes
from bamboo.vision import folders
from bamboo.vision.data import ImageFolder
from bamboo.vision.images import Files, Unreadable
from tests.runs import CONFIGS, ROOT, TINY, load, scalars

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def run(folder, verb, *args, config="pretrain/quickstart.yaml"):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bamboo", verb, "--config", str(CONFIGS / config), *TINY, *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    steps = ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"]
    probed = []
    for name, batch, devices in (("one", "64", []), ("two", "32", DDP)):
        gradients = ["--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"]
        out = run(tmp_path / name, "fit", *steps, "--data.init_args.batch_size", batch, *devices, *gradients)
        probed.append(re.findall(r"nearest neighbours, (.*): +([\d.]+) %", out))
    one, two = (torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in probed[0]] == ["raw pixels", "untrained encoder"]
    assert probed[0] == probed[1]
    runs = [tmp_path / name / "runs/quickstart/version_0" for name in ("one", "two")]
    rates = [scalars(folder, "train/lr") for folder in runs]
    assert rates[0] == rates[1]
    assert max(rates[0].values()) > 0
    weights = [load(folder / "checkpoints/last.ckpt")["state_dict"] for folder in runs]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


def test_evaluation_on_two_processes_counts_every_sample_once(tmp_path, image_root):
    folder = [
        *("--data.init_args.root", str(image_root)),
        *("--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"),
    ]
    losses = []
    for batch, devices in (("8", []), ("4", DDP)):  # the same images in a step, so the same masks
        size = ["--data.init_args.batch_size", batch]
        out = run(tmp_path, "validate", *folder, *size, *devices, config="pretrain/image_folder.yaml")
        results = dict(re.findall(r"(val/\w+)\W+([\d.]+)", out))
        assert float(results["val/samples"]) == 13
        losses.append(float(results["val/loss"]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def said(call):
    """What `call` gives, or the error that it raises, in words."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def meet(rank, folder, root):
    """What one of two processes sees, saved for the test."""
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=60)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    walks, scan = [], folders.scan
    folders.scan = lambda folder, *args: walks.append(str(folder)) or scan(folder, *args)
    data = ImageFolder(str(root))
    data.setup()
    results = {"names": [data.sources.val.name(i) for i in range(13)], "walks": len(walks)}
    results["classes"] = data.classes
    results["missing"] = said(ImageFolder(str(root / "none")).setup)
    results["unexpected"] = said(lambda: from_first_process(lambda: 1 / rank))
    results["rows"] = of_all_processes(torch.full((rank + 1, 2), rank)).tolist()
    if rank == 1:  # as if the files were on the other machine alone

        def unreadable(files, index):
            raise Unreadable(files.name(index))

        Files.read = unreadable
    results["elsewhere"] = said(ImageFolder(str(root)).setup)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory, image_root):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("meeting")
    multiprocessing.spawn(meet, (folder, image_root), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_one_process_walks_the_folder_and_the_others_get_its_list(seen, image_root):
    assert [one["walks"] for one in seen] == [2 * 3, 0]  # train/ and val/, with two classes in each
    expected = sorted(map(str, (image_root / "val").rglob("*.jpg")))
    assert seen[0]["names"] == seen[1]["names"] == expected
    assert seen[0]["classes"] == seen[1]["classes"] == ("ant", "bee")


def test_what_fails_on_one_process_is_raised_by_all_so_that_none_hangs(seen, image_root):
    for one in seen:
        assert one["missing"].startswith(f"InputError: {image_root / 'none'}: no such folder")
        assert "ZeroDivisionError" in one["unexpected"]
        assert one["elsewhere"].startswith("InputError: process 1 on ")
        assert "none of its 32 images can be read" in one["elsewhere"]


def test_uneven_rows_are_gathered_whole(seen):
    assert [one["rows"] for one in seen] == [[[0, 0], [1, 1], [1, 1]]] * 2
