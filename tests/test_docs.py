"""Every example in the README and in docs/ runs, at a reduced size, in the order in which it is written."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

from bamboo.cli import main
from tests.finetune.glue.tiny import write_data
from tests.runs import ROOT, TINY, fit
from tests.study.tiny import written
from tests.text import runs as text_runs

pytestmark = pytest.mark.slow

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
CLUSTER = re.compile(r" --trainer\.(devices|num_nodes|strategy) \S+")
SMALL_RUN = [
    *TINY,
    *("--model.init_args.image_size", "32", "--model.init_args.patch_size", "8", "--trainer.limit_train_batches", "2"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    *("--data.init_args.batch_size", "8", "--data.init_args.num_workers", "0"),
]
SMALL_TEXT_RUN = [
    *text_runs.TINY,
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    *("--trainer.accumulate_grad_batches", "1", "--trainer.val_check_interval", "2"),
    *("--data.init_args.batch_size", "8", "--data.init_args.num_workers", "0", "--data.init_args.block_length", "32"),
]
REDUCED = {
    "fit": SMALL_RUN,
    "validate": SMALL_RUN,
    "profile": ["--samples", "8", "--batch-size", "4"],
    "glue": ["--seeds", "1", "--epochs", "1", "--samples", "16"],
    "scaling": ["--resamples", "20"],
}
WORDS = ["it", "was", "a", "fine", "day", "and", "nobody", "thought", "of", "rain", "until", "the", "bell", "rang"]


def reduced(verb, rest):
    """What a command of a page is given besides, to run at a reduced size."""
    if verb == "fit" and "finetune/glue" in rest:
        return [*SMALL_RUN[-8:-4], "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    if verb in ("fit", "validate") and "text_" in " ".join(rest):
        return SMALL_TEXT_RUN
    return REDUCED.get(verb, [])


def as_small_study(rest):
    """The words of `bamboo study` with a study of seconds in the place of a shipped one, unless nothing is run."""
    if "--dry-run" in rest or "--config" not in rest:
        return rest
    rest = ["--workers", "1", *rest]
    if "--data" in rest:
        del rest[rest.index("--data") : rest.index("--data") + 2]
    rest[rest.index("--config") + 1] = str(written(Path("small_study"), seeds=1))
    return rest


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page):
    return [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path, monkeypatch, image_root):
    """A folder with what the pages speak of: the configurations, a finished quickstart, a photo."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    Image.new("RGB", (60, 40), "green").save("photo.jpg")
    assert fit(*SMALL_RUN[len(TINY) :]) == 0
    (tmp_path / "text").mkdir()
    for number in range(12):
        words = [WORDS[(number + place * (place % 5 + 1)) % len(WORDS)] for place in range(300)]
        (tmp_path / "text" / f"{number}.txt").write_text(" ".join(words))
    runs = ((n, d) for n in (1e6, 2e6, 4e6, 8e6) for d in (1e8, 2e8, 4e8))
    rows = [f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n, d in runs]
    (tmp_path / "runs.csv").write_text("\n".join(["parameters,data,loss", *rows]) + "\n")
    return {"text": tmp_path / "text", "glue": write_data(tmp_path / "glue")}.get, image_root


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page, workplace):
    place, images = workplace
    if "runs/text_quickstart" in (ROOT / page).read_text():
        assert text_runs.fit(*SMALL_TEXT_RUN[len(text_runs.TINY) :]) == 0
    for block in blocks(page, "yaml"):
        Path("more.yaml").write_text(block)
    for line in commands(page):
        line = re.sub(r"/path/to/(\w+)", lambda found: str(place(found[1], images)), CLUSTER.sub("", line))
        program, verb, *rest = shlex.split(line, comments=True)
        if program == "make":
            assert f"\n{verb}: " in (ROOT / "Makefile").read_text(), line
            continue
        assert program == "bamboo", line
        rest = as_small_study(rest) if verb == "study" else rest
        try:
            code = main([verb, *rest, *reduced(verb, rest)])
        except SystemExit as stop:  # --help and --print_config
            code = stop.code or 0
        assert code == 0, line


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs(page, workplace, capsys):
    if page == "docs/text.md":
        assert text_runs.fit(*SMALL_TEXT_RUN[len(text_runs.TINY) :]) == 0
        checkpoint = "runs/text_quickstart/version_0/checkpoints/last.ckpt"
        assert main(["export", checkpoint, "--format", "hf", "--out", "exported_text"]) == 0
    for format in ("reference", "hf"):
        assert (
            main(["export", "runs/quickstart/version_0/checkpoints/last.ckpt", "--format", format, "--out", "exported"])
            == 0
        )
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_the_table_of_shapes_in_the_readme_is_what_the_command_prints(capsys):
    (console,) = blocks("README.md", "console")
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
