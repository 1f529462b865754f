import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Models as small as those here are faster on one thread, and much faster beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
