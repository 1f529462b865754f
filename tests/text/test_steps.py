"""What a step of masked language modelling does besides its maths: see tests/test_steps.py."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from bamboo.callbacks import NonFiniteGuard
from bamboo.recipes import Recipe
from bamboo.shapes import Shape
from bamboo.text.classification import TextClassification
from bamboo.text.data import PackedCorpus
from bamboo.text.glosses import GlossSubjects
from bamboo.text.pretraining import MLMPretraining
from tests.test_steps import traffic, train

RECIPE = Recipe(base_lr=1e-2, warmup_share=0.5)


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"shape": Shape(2, 32, 2), "vocab_size": 200, "max_positions": 32}
    return MLMPretraining(**{"recipe": RECIPE, **sizes, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "bert", "dropout": 0.1},
        {"architecture": "roberta-prelayernorm", "recipe": replace(RECIPE, optimizer="came", betas=(0.9, 0.99, 0.999))},
        {"architecture": "roberta-prelayernorm", "within_documents": True, "whole_words": True},
        {"architecture": "modernbert", "within_documents": True},
        {"architecture": "bert", "grad_checkpointing": True},
        {"architecture": "bert", "within_documents": True, "positions": "fire", "adaptive": "dape_v2"},
        {"architecture": "roberta-prelayernorm", "positions": "kerple", "adaptive": "dape"},
    ],
)
def test_the_host_waits_for_the_device_at_no_step_that_is_not_logged(corpus, monkeypatch, options):
    module = tiny(**options)
    module.noise = lambda shape, *_: torch.empty(*shape, device="meta")
    data = PackedCorpus(str(corpus), block_length=32, batch_size=8)
    assert traffic(monkeypatch, module, data, limit_train_batches=5) == [([], [])] * 5


@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm", "modernbert"])
def test_bf16_true_trains_on_the_same_masks_and_counts_exactly(corpus, architecture):
    module = tiny(architecture=architecture, within_documents=True)
    start = deepcopy(module.state_dict())
    data = PackedCorpus(str(corpus), block_length=32, batch_size=8)
    trainer = train(module, data, NonFiniteGuard(), precision="bf16-true", limit_train_batches=3)
    weights = module.state_dict()
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert any(not torch.equal(weight, start[name].bfloat16()) for name, weight in weights.items())
    assert trainer.callback_metrics["val/loss"].dtype == torch.float32
    blocks = len(data.samples("val"))
    assert module.val_loss.weight.item() in (0, 5 * blocks)  # 15 % of 32 tokens; 0 once Lightning has reset it
    ids = next(iter(data.val_dataloader()))["input_ids"]
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does around a step
    try:
        masked = module.mask(ids, "val", 0, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(masked.positions, module.mask(ids, "val", 0, 0).positions)


def test_bf16_true_trains_a_classification():
    torch.manual_seed(0)
    module = TextClassification(RECIPE, pool="avg", shape=Shape(2, 32, 2), vocab_size=500, max_positions=32)
    data = GlossSubjects(vocab_size=500, length=16, batch_size=8)
    options = {"precision": "bf16-true", "limit_train_batches": 3, "limit_val_batches": 2}
    trainer = train(module, data, NonFiniteGuard(), **options)
    assert all(weight.dtype == torch.bfloat16 for weight in module.state_dict().values())
    assert trainer.callback_metrics["val/loss"].isfinite()
