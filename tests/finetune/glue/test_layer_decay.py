"""Layers of every architecture, against tables written by hand from the names of its parameters."""

import pytest
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
    XLNetConfig,
)

from bamboo.errors import InputError
from bamboo.finetune.glue.layer_decay import layer_groups

SIZES = {
    **{"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 8, "max_position_embeddings": 12, "pad_token_id": 0},
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MODERN = {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}

# Configuration, blocks, what counts as the embedding, and what counts as the head, by the first words of the names.
TABLE = [
    (BertConfig(**SIZES), "bert.encoder.layer", ["bert.embeddings"], ["bert.pooler", "classifier"]),
    (RobertaConfig(**SIZES), "roberta.encoder.layer", ["roberta.embeddings"], ["classifier"]),
    (
        RobertaPreLayerNormConfig(**SIZES),
        "roberta_prelayernorm.encoder.layer",
        ["roberta_prelayernorm.embeddings"],
        ["roberta_prelayernorm.LayerNorm", "classifier"],
    ),
    (
        ElectraConfig(**SIZES, embedding_size=4),
        "electra.encoder.layer",
        ["electra.embeddings.", "electra.embeddings_project"],
        ["classifier"],
    ),
    (
        DebertaConfig(**SIZES, **RELATIVE),
        "deberta.encoder.layer",
        ["deberta.embeddings", "deberta.encoder.rel_embeddings"],
        ["pooler", "classifier"],
    ),
    (
        DebertaV2Config(**SIZES, **RELATIVE, norm_rel_ebd="layer_norm", conv_kernel_size=3),
        "deberta.encoder.layer",
        ["deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm", "deberta.encoder.conv"],
        ["pooler", "classifier"],
    ),
    (
        DistilBertConfig(vocab_size=12, dim=8, n_layers=2, n_heads=2, hidden_dim=8, max_position_embeddings=12),
        "distilbert.transformer.layer",
        ["distilbert.embeddings"],
        ["pre_classifier", "classifier"],
    ),
    (
        ModernBertConfig(**SIZES, **MODERN),
        "model.layers",
        ["model.embeddings"],
        ["model.final_norm", "head", "classifier"],
    ),
    (
        GPT2Config(vocab_size=12, n_embd=8, n_layer=2, n_head=2, n_positions=12),
        "transformer.h",
        ["transformer.wte", "transformer.wpe"],
        ["transformer.ln_f", "score"],
    ),
    (
        XLNetConfig(vocab_size=12, d_model=8, n_layer=2, n_head=2, d_inner=8),
        "transformer.layer",
        ["transformer.mask_emb", "transformer.word_embedding"],
        ["sequence_summary", "logits_proj"],
    ),
]


@pytest.mark.parametrize(("config", "blocks", "embedding", "head"), TABLE, ids=[row[0].model_type for row in TABLE])
def test_layers_are_those_of_a_table_written_by_hand(config, blocks, embedding, head):
    model = AutoModelForSequenceClassification.from_config(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    firsts = {"embedding": embedding, "block 0": [f"{blocks}.0."], "block 1": [f"{blocks}.1."], "head": head}
    groups = layer_groups(model, 0.5, 0.1, written_for=2)
    placed = [(names.pop(id(p)), group["layer"]) for group in groups for p in group["params"]]
    assert names == {}
    assert {layer for _, layer in placed} == set(firsts)
    for name, layer in placed:
        assert any(name.startswith(first) for first in firsts[layer]), (name, layer)
    scales = {"head": 1.0, "block 1": 0.5, "block 0": 0.25, "embedding": 0.125}
    assert {group["layer"]: group["lr_scale"] for group in groups} == scales
    assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for group in groups for p in group["params"])


def test_at_another_depth_than_written_for_the_same_relative_depth_has_the_same_rate():
    config = BertConfig(**{**SIZES, "num_hidden_layers": 48, "hidden_size": 2, "num_attention_heads": 1})
    groups = layer_groups(AutoModelForSequenceClassification.from_config(config), 0.65, 0.0)
    scales = {group["layer"]: group["lr_scale"] for group in groups}
    for block in range(12):
        assert scales[f"block {4 * block + 3}"] == pytest.approx(0.65 ** (12 - block))  # layer l of 12: 12 + 1 - l
    assert (scales["head"], scales["embedding"]) == (1, pytest.approx(0.65**13))


REFUSED = {
    "albert": (AlbertConfig(**SIZES, embedding_size=4), "albert shares its blocks"),
    "bart": (
        BartConfig(vocab_size=12, d_model=16, encoder_layers=2, decoder_layers=2, max_position_embeddings=12),
        "bart has no single list of blocks",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_encoder_whose_blocks_cannot_be_told_apart_is_refused_by_name_and_trains_without_decay(name):
    config, message = REFUSED[name]
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match=message):
        layer_groups(model, 0.9, 0.0)
    groups = layer_groups(model, 1.0, 0.1)
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
