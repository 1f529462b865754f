"""Blocks of text models, compiled."""

import pytest
import torch

from bamboo.compiling import compile_in_training
from bamboo.shapes import Shape
from bamboo.text.encoder import blocks_of, build_config, build_model, hidden_states
from bamboo.text.mlm import documents_of


@pytest.mark.parametrize(
    ("architecture", "checkpointing"),
    [("bert", False), ("bert", True), ("roberta-prelayernorm", False), ("modernbert", False)],
)
def test_blocks_of_text_compile_without_a_break(graphs, architecture, checkpointing):
    torch.manual_seed(0)
    model = build_model(
        build_config(Shape(3, 32, 2), architecture, vocab_size=100, max_positions=32, dropout=0.1)
    ).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    compile_in_training(blocks_of(model), backend="eager")
    ids = torch.randint(5, 100, (2, 16))
    counts = []
    for step in range(4):
        hidden_states(model, ids, documents_of(ids, 7)).sum().backward()
        with torch.no_grad():
            hidden_states(model.eval(), ids[:, : 8 + step])
        model.train()
        counts.append(graphs())
    assert counts[1:] == counts[:1] * 3
    assert counts[0][0] <= 2  # ModernBERT's first block has no norm
    assert counts[0][1] == 0
