"""`load_from_checkpoint` gives back a module with the weights, the recipe and the options of the run."""

from dataclasses import asdict

import pytest
import torch

from bamboo.recipes import Recipe
from bamboo.text.classification import TextClassification
from bamboo.text.pretraining import MLMPretraining
from bamboo.vision.pretraining import MAEPretraining
from tests.runs import same

RECIPE = Recipe(base_lr=3e-4, optimizer="came", betas=(0.8, 0.9, 0.99), schedule="trapezoid", effective_batch=512)
SHAPE = {"depth": 2, "width": 32, "heads": 2}
TEXT = {"shape": SHAPE, "architecture": "roberta-prelayernorm", "vocab_size": 100, "max_positions": 16, "dropout": 0.2}
OPTIONS = {
    MAEPretraining: {"image_size": 8, "patch_size": 2, "in_chans": 1, "decoder_shape": SHAPE, "decoder": "cross"}
    | {"shape": SHAPE, "mask_ratio": 0.5, "predict_ratio": 0.5, "mix_layers": True, "mean": [0.2], "std": [0.3]}
    | {"grad_checkpointing": True, "compile": True, "seed": 5},
    MLMPretraining: {**TEXT, "mask_ratio": 0.3, "whole_words": True, "within_documents": True, "seed": 6},
    TextClassification: {**TEXT, "pool": "avg", "seed": 7},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_module_comes_back_as_it_was(kind, tmp_path):
    module = kind(recipe=RECIPE, **OPTIONS[kind])
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "tokenizer": "of the run"}
    torch.save({**content, "pytorch-lightning_version": "2.6.0"}, tmp_path / "run.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert again.recipe == RECIPE
    expected = {**OPTIONS[kind], "recipe": asdict(RECIPE)}
    assert {key: again.hparams[key] for key in expected} == expected
    assert same(again.state_dict(), module.state_dict())
    for name in ("seed", "mask_ratio", "whole_words", "within_documents", "compile_blocks", "pool"):
        assert getattr(again, name, None) == getattr(module, name, None), name
    assert kind is MAEPretraining or again.tokenizer_json == "of the run"
