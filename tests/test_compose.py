from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bamboo.errors import InputError
from bamboo.fit.compose import compose, compose_arguments, find_config
from tests.runs import CONFIGS


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_list_replaces_that_of_the_base_and_is_appended_under_its_name_with_a_plus(tmp_path):
    write(tmp_path / "base.yaml", "trainer: {callbacks: [a, b], plugins: [p]}\n")
    plus = write(tmp_path / "plus.yaml", "base: base.yaml\ntrainer: {callbacks+: [c], plugins: [q], loggers+: [l]}\n")
    top = write(tmp_path / "top.yaml", "base: plus.yaml\ntrainer: {callbacks+: [d]}\n")
    assert compose(plus) == {"trainer": {"callbacks": ["a", "b", "c"], "plugins": ["q"], "loggers": ["l"]}}
    assert compose(top).trainer.callbacks == ["a", "b", "c", "d"]


def test_a_second_file_on_the_command_line_appends_as_a_base_does(tmp_path):
    first = write(tmp_path / "first.yaml", "seed: 3\ntrainer: {callbacks: [a], seed: '${seed}'}\n")
    second = write(tmp_path / "second.yaml", "trainer: {callbacks+: [b]}\n")
    text = compose_arguments(["fit", "--config", str(first), "--config", str(second), "--seed=4"])[2]
    assert OmegaConf.create(text) == {"seed": 4, "trainer": {"callbacks": ["a", "b"], "seed": 4}}


def test_the_package_s_configurations_are_found_by_name(tmp_path, monkeypatch):
    assert find_config("pretrain/quickstart").samefile(CONFIGS / "pretrain/quickstart.yaml")
    assert find_config("study/digits").samefile(CONFIGS / "study/digits.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrain").mkdir()
    own = write(tmp_path / "pretrain" / "quickstart", "seed: 1\n")
    assert find_config("pretrain/quickstart") == own.relative_to(tmp_path)
    (tmp_path / "study" / "digits").mkdir(parents=True)  # a folder is no configuration
    assert find_config("study/digits").samefile(CONFIGS / "study/digits.yaml")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="unknown configuration 'pretrain/quikstart': did you mean 'pretrain/quickst"):
        find_config("pretrain/quikstart")
