import pytest

from tests.finetune.glue.tiny import write_data, write_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A tiny BERT as a Hugging Face folder."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A few examples of every task, whose labels can be learned."""
    return write_data(tmp_path_factory.mktemp("glue"))
