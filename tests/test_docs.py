"""Every example of the README and of docs/ runs from the installed wheel, in an empty folder, at a reduced size.

The blocks of a page run in the order in which they are written. Its commands are read by bash, and then run by the
wheel's own `bamboo`, each in a process of its own.
"""

import csv
import json
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bamboo.cli import main
from bamboo.fit.compose import find_config
from tests.finetune.glue.tiny import write_data, write_encoder
from tests.mutants.__main__ import PRELOADED
from tests.runs import ROOT
from tests.study.tiny import written
from tests.vision.sources import as_parquet, as_tar

pytestmark = pytest.mark.slow

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
LEFT_OUT = {
    "bamboo fit --config pretrain/cifar10 --data.init_args.name STL10": "downloads the images",
    'bamboo fit --config pretrain/quickstart --model.init_args.shape {"depth": 24': "stacks, and reduced is not deeper",
    "bamboo profile DeiT III, labels=timm:deit3_": "downloads six encoders",
    "bamboo profile DINOv2=hf:": "reads an encoder of the reader's",
    "bamboo glue hf:sentence-transformers/all-MiniLM-L6-v2": "downloads the encoder",
}
"""What the commands begin with that are not run, and why; `make` needs the repository and is looked up there."""

RUN = "runs/{}/version_0/checkpoints/last.ckpt"
NAMES = {"CHECKPOINT": RUN.format("quickstart"), "ENCODER": RUN.format("quickstart")}
NAMES |= {"CLASSIFIER": RUN.format("finetune-2x32")}
"""What the pages leave open."""

SHAPE = ["--model.init_args.shape", '{"depth": 2, "width": 32, "heads": 2}']
QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.devices", "1"),
    *("--trainer.num_nodes", "1", "--trainer.strategy", "auto", "--trainer.max_epochs", "1"),
    *("--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"),
    *("--data.init_args.batch_size", "8", "--data.init_args.num_workers", "0"),
]
IMAGES = [
    *(*SHAPE, "--model.init_args.image_size", "32", "--data.init_args.image_size", "32"),
    *("--model.init_args.patch_size", "8"),
    *("--model.init_args.recipe.warmup_share", "0.5", "--model.init_args.recipe.effective_batch", "0", *QUICK),
]
FOR_TRAINING = {
    "finetune/(glue|texts)": QUICK[:-4],
    "finetune/(imagenet|high_resolution|scratch$)": [*IMAGES, "--model.init_args.num_classes", "2"],
    "finetune/": IMAGES,
    "pretrain/text_": [
        *(*SHAPE, "--model.init_args.recipe.effective_batch", "0", *QUICK, "--data.init_args.block_length", "32"),
        *("--trainer.max_steps", "2", "--trainer.accumulate_grad_batches", "1", "--trainer.val_check_interval", "2"),
    ],
    "pretrain/": [*IMAGES, "--model.init_args.decoder_shape", '{"depth": 1, "width": 32, "heads": 2}'],
}
"""What a training is given besides, to take seconds, by the first of these that its configuration begins with."""
FOR_OTHERS = {
    "profile": ["--samples", "8", "--batch-size", "4"],
    "glue": ["--seeds", "1", "--epochs", "1", "--samples", "16"],
    "scaling": ["--resamples", "20"],
}
WORDS = ["it", "was", "a", "fine", "day", "and", "nobody", "thought", "of", "rain", "until", "the", "bell", "rang"]

BASH = f"""
bamboo() {{ printf '%q ' bamboo "$@"; echo; }}
make() {{ grep --quiet "^$1: " {shlex.quote(str(ROOT))}/Makefile; }}
srun() {{ "$@"; }}
"""
"""In which `bamboo` prints its words, and `make` fails for a target that the repository has not."""

WARM = """
import json, os, runpy, sys
for name in sys.argv[1:]:
    __import__(name)
for line in sys.stdin:
    folder, *words = json.loads(line)
    if not (child := os.fork()):
        os.chdir(folder)
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs a line of a folder and a script with its arguments in a fork, which spares it the imports."""


def blocks(page, languages=r"\w*"):
    return re.findall(rf"^```({languages})\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(block):
    """The words of every command of a block, as bash reads them."""
    environment = {"PATH": "/usr/bin:/bin", "seed": "0", "SLURM_ARRAY_TASK_ID": "0"}
    done = subprocess.run(["bash", "-euc", BASH + block], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}{block}"
    return [shlex.split(line) for line in done.stdout.splitlines()]


def left_out(words):
    return [start for start in LEFT_OUT if " ".join(words).startswith(start)]


def reduced(verb, *words):
    """The words of a command, with others behind them so that it takes seconds."""
    if "--dry-run" in words:
        return [verb, *words]
    config = words[words.index("--config") + 1] if "--config" in words else ""
    if verb == "study" and config:  # one of seconds in its place
        assert find_config(config)
        line = re.sub(r" --(config|data) \S+", "", " ".join(words))
        return [
            verb,
            *line.split(),
            "--config",
            str(written(Path("small_study").absolute(), seeds=1)),
            "--workers",
            "1",
        ]
    if config:
        return [verb, *words, *next(more for start, more in FOR_TRAINING.items() if re.match(start, config))]
    return [verb, *words, *FOR_OTHERS.get(verb, [])]


@pytest.fixture(scope="module")
def type_in(installed):
    """Runs the command `bamboo`, or a Python script, in the present folder by the environment of the wheel."""
    names = ["bamboo.cli", *PRELOADED]
    process = subprocess.Popen(
        [installed / "bin/python", "-Pc", WARM, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(program, *words):
        script = str(installed / "bin/bamboo") if program == "bamboo" else program
        words = reduced(*words) if program == "bamboo" else words
        print(json.dumps([str(Path.cwd()), script, *words]), file=process.stdin, flush=True)
        assert process.stdout.readline() == "0\n", f"{shlex.join(words)}\n{Path('output.txt').read_text()[-3000:]}"

    yield run
    process.stdin.close()
    assert process.wait() == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory, type_in):
    """A folder with what the pages speak of: finished runs, a photo, texts, tables."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for config in ("pretrain/quickstart", "pretrain/text_quickstart"):
            type_in("bamboo", "fit", "--config", config)
        type_in("bamboo", "export", RUN.format("quickstart"), "--format", "reference", "--out", "reference")
        next(Path("reference").glob("*.pth")).rename("mae_pretrain_vit_base.pth")
        Image.new("RGB", (60, 40), "green").save("photo.jpg")
        write_data(Path("glue"))
        write_encoder(Path("FOLDER_OF_THE_MODEL"))
        as_parquet(Path("parquet"))
        as_tar(Path("shards"))
        for name in ("text", "topics"):
            Path(name).mkdir()
            for number in range(12):
                words = (WORDS[(number + place * (place % 5 + 1)) % len(WORDS)] for place in range(300))
                Path(name, f"{number}.txt").write_text(" ".join(words))
        rows = [(" ".join(WORDS[number:]), ("praise", "blame")[number % 2]) for number in range(12)]
        Path("SST-2").mkdir()
        for name in ("train.csv", "val.csv", "other.tsv", "SST-2/dev.tsv"):
            with Path(name).open("w") as file:
                csv.writer(file, "excel" if name.endswith("csv") else "excel-tab").writerows([("text", "label"), *rows])
        Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows))
        runs = ((n, d) for n in (1e6, 2e6, 4e6, 8e6) for d in (1e8, 2e8, 4e8))
        laws = [f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n, d in runs]
        Path("runs.csv").write_text("\n".join(["parameters,data,loss", *laws]) + "\n")
    return folder


def is_bash(block):
    return re.search(r"^ *(srun )?(bamboo|make) ", block, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, finished, type_in, tmp_path, image_root, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "folder")
    monkeypatch.chdir(folder)
    for number, place in enumerate(sorted((image_root / "train").iterdir())):
        shutil.copytree(place, Path("imagenetv2", str(number)))
        shutil.copytree(place, Path("imagenet-r", place.name))
    for language, block in blocks(page):
        if language == "yaml":
            Path("more.yaml").write_text(block)
        elif language == "python":
            Path("example.py").write_text(block)
            type_in("example.py")
        elif is_bash(block):
            block = re.sub(
                r"/path/to/([\w-]+)", lambda name: name[1] if Path(name[1]).exists() else str(image_root), block
            )
            for words in commands(re.sub("|".join(NAMES), lambda name: NAMES[name[0]], block)):
                if not left_out(words):
                    type_in(*words)


def test_what_is_left_out_is_still_on_a_page():
    typed = [words for page in PAGES for _, block in blocks(page) if is_bash(block) for words in commands(block)]
    assert {start for words in typed for start in left_out(words)} == set(LEFT_OUT)


def test_the_table_of_shapes_in_the_readme_is_what_the_command_prints(capsys):
    ((_, console),) = blocks("README.md", "console")
    command, _, table = console.partition("\n")
    assert main(shlex.split(command.removeprefix("$ bamboo"))) == 0
    assert capsys.readouterr().out.strip() == table.strip()


def test_the_picture_of_the_architecture_is_drawn_by_its_script(tmp_path, monkeypatch):
    out = tmp_path / "architecture.png"
    monkeypatch.setattr("sys.argv", ["draw_architecture.py", str(out)])
    runpy.run_path(str(ROOT / "docs" / "images" / "draw_architecture.py"), run_name="__main__")
    with Image.open(out) as drawn, Image.open(ROOT / "docs" / "images" / "architecture.png") as shown:
        assert drawn.size == shown.size


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target
