"""A tiny study that has been run, for the tests that look at what it left."""

import pytest

from bamboo.analysis.plots import STYLE
from bamboo.study.folders import load_stored
from bamboo.study.report import write_report
from bamboo.study.results import read_results

from .tiny import run_here, tiny


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """The tiny study, run without interruption."""
    folder = tmp_path_factory.mktemp("study")
    run_here(tiny(folder), folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLE, "savefig.dpi", 60)  # a third of the time
        write_report(read_results(load_stored(folder / "out"), folder / "out"), folder / "out")
    return folder / "out"
