"""Passes as CUDA graphs. Without a GPU the capture is a stand-in, and what is tested is when it is used."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bamboo.compiling import Graphed
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.text.classification import TextClassification
from bamboo.text.pretraining import MLMPretraining
from bamboo.vision.pretraining import MAEPretraining

SMALL = {"shape": {"depth": 2, "width": 32, "heads": 2}}
VISION = {**SMALL, "image_size": 16, "patch_size": 4}
DECODER = {"depth": 1, "width": 32, "heads": 2}
TEXT = {**SMALL, "vocab_size": 64}


def modules(compile):
    return {
        "mae": MAEPretraining(**VISION, decoder_shape=DECODER, compile=compile),
        "classifier": Classifier(**VISION, encoder="scratch", num_classes=3, drop_path=0.2, compile=compile),
        "mlm": MLMPretraining(**TEXT, dropout=0.1, compile=compile),
        "glosses": TextClassification(**TEXT, dropout=0.1, compile=compile),
    }


@pytest.fixture
def captures(monkeypatch):
    """What is captured: the stand-in doubles the result of the function, so that a replay can be told."""
    seen = []

    def capture(module, samples, allow_unused_input):
        function = module.forward
        seen.append((samples, [*module.parameters()]))
        module.forward = lambda *tensors: 2 * function(*tensors)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    return seen


def test_a_pass_is_captured_at_its_second_call(captures):
    module = nn.Linear(3, 1)
    graphed = Graphed(lambda x: module(x).sum(), module)
    inputs = [*torch.randn(4, 2, 3)]
    first, *others = map(graphed, inputs)
    assert first == module(inputs[0]).sum()
    assert others == [2 * module(x).sum() for x in inputs[1:]]
    assert len(captures) == 1
    ((sample,), parameters) = captures[0]
    assert sample is not inputs[1]  # it becomes the input of the graph, and is written to
    assert torch.equal(sample, inputs[1])
    assert {id(p) for p in parameters} == {id(p) for p in module.parameters()}


def test_a_pass_is_as_it_was_on_a_cpu(captures):
    module = modules("graphs")["mae"].train()
    images, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    losses = [module.run(lambda *tensors: module.mae(*tensors).loss, images, noise) for _ in range(3)]
    assert losses == [module.mae(images, noise).loss] * 3
    assert not captures


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"world_size": 2}, "several processes"),
        ({"accumulate_grad_batches": 2}, "accumulated batches"),
        ({"precision": "bf16-mixed"}, "mixed precision"),
    ],
)
def test_what_a_graph_would_get_wrong_is_refused(changes, named):
    module = modules("graphs")["mae"]
    settings = {"world_size": 1, "accumulate_grad_batches": 1, "precision": "32-true"}
    module._trainer = SimpleNamespace(**settings)
    module._check_graphs()
    module._trainer = SimpleNamespace(**settings | changes)
    with pytest.raises(InputError, match=f"does not go with {named}"):
        module._check_graphs()


def test_modules_that_a_graph_would_get_wrong_are_refused():
    settings = SimpleNamespace(world_size=1, accumulate_grad_batches=1, precision="32-true")
    repeated = MAEPretraining(**VISION, decoder_shape=DECODER, grad_checkpointing=True)
    counting = Classifier(**VISION, encoder="scratch", num_classes=3, batch_norm=True)
    for module, named in ((repeated, "gradient checkpointing"), (counting, "batch norm")):
        module._trainer = settings
        with pytest.raises(InputError, match=f"does not go with {named}"):
            module._check_graphs()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["mae", "classifier", "mlm", "glosses"])
def test_replayed_passes_are_those_of_single_kernels(name):
    results = {}
    for compile in (False, "graphs"):
        torch.manual_seed(0)
        module = modules(compile)[name].cuda().train()
        generator = torch.Generator("cuda").manual_seed(1)
        rows = []
        for step in range(5):
            torch.manual_seed(step)
            module.zero_grad()
            loss = _loss(module, generator)
            loss.backward()
            rows.append([loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
        results[compile] = rows
    for plain, replayed in zip(results[False], results["graphs"], strict=True):
        for one, other in zip(plain, replayed, strict=True):
            torch.testing.assert_close(one, other)


def _loss(module, generator):
    uniform = torch.rand(2, 3 * 16 * 16, generator=generator, device="cuda")
    if isinstance(module, MAEPretraining):
        images, noise = uniform.view(2, 3, 16, 16), uniform[:, :16].clone()
        return module.run(lambda *tensors: module.mae(*tensors).loss, images, noise)
    if isinstance(module, Classifier):
        return module(uniform.view(2, 3, 16, 16)).square().mean()
    ids = (uniform[:, :24] * 50 + 5).long()
    if isinstance(module, TextClassification):
        read = torch.ones_like(ids, dtype=torch.bool)
        read[0, 12:] = False
        return module({"input_ids": ids, "attention_mask": read, "special_tokens_mask": ~read}).square().mean()
    from bamboo.text.masking import Masked
    from bamboo.text.mlm import guess

    masked = Masked(ids, torch.arange(4, device="cuda").expand(2, 4), ids[:, :4])
    return module.run(lambda *parts: guess(module.model, Masked(*parts)), *masked).loss
