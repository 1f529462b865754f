from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.text.encoder import (
    blocks_of,
    build_config,
    build_model,
    hidden_states,
    longest_sequence,
    prediction_head,
)
from bamboo.text.masking import IGNORED, Masked, Vocabulary, mask_tokens, masked_count
from bamboo.text.mlm import documents_of, guess
from bamboo.text.pretraining import MLMPretraining

SHAPE = Shape(3, 32, 4)
ARCHITECTURES = ("bert", "roberta-prelayernorm", "modernbert")
SEP = 3


def model_of(architecture, **options):
    torch.manual_seed(0)
    return build_model(build_config(SHAPE, architecture, vocab_size=120, max_positions=24, **options))


def masked_batch(rows=5, length=20, count=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 120, (rows, length), generator=generator)
    special = torch.arange(120) < 5
    vocabulary = Vocabulary(4, special, torch.zeros(120, dtype=torch.bool))
    return ids, mask_tokens(ids, torch.rand(rows, length, 3, generator=generator), count, vocabulary)


def dense_labels(masked):
    labels = torch.full_like(masked.input_ids, IGNORED)
    return labels.scatter(1, masked.positions, masked.labels)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_those_of_transformers_with_dense_labels(architecture):
    model = model_of(architecture)
    _, masked = masked_batch()
    output = guess(model, masked)
    own_gradients = gradients(model, output.loss)
    reference = model(masked.input_ids, labels=dense_labels(masked))
    reference_gradients = gradients(model, reference.loss)
    torch.testing.assert_close(output.loss, reference.loss)
    assert own_gradients.keys() == reference_gradients.keys()
    for name, gradient in own_gradients.items():
        torch.testing.assert_close(gradient, reference_gradients[name], msg=name)
    predicted = reference.logits.argmax(-1).gather(1, masked.positions)
    assert output.right == (predicted == masked.labels).sum()
    assert output.asked == 30


def test_the_bert_that_is_built_is_transformers_own_bert():
    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    reference, output = BertForMaskedLM(config), model_of("bert")
    reference.load_state_dict(output.state_dict())
    _, masked = masked_batch()
    labels = dense_labels(masked)
    torch.testing.assert_close(guess(output, masked).loss, reference(masked.input_ids, labels=labels).loss)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_in_one_block_are_read_as_if_each_were_padded_on_its_own(architecture):
    model = model_of(architecture)
    generator = torch.Generator().manual_seed(2)
    lengths = (7, 5, 8)
    documents = [torch.randint(5, 120, (length,), generator=generator) for length in lengths]
    for document in documents:
        document[-1] = SEP
    block = torch.cat(documents)[None]
    numbers = documents_of(block, SEP)
    assert numbers.tolist() == [[0] * 7 + [1] * 5 + [2] * 8]
    labels = torch.full((3, 8), IGNORED)
    padded, read = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64)
    places, start = [], 0
    for row, (document, length) in enumerate(zip(documents, lengths, strict=True)):
        padded[row, :length], read[row, :length] = document, 1
        labels[row, 1:3] = document[1:3]
        places += [start + 1, start + 2]
        start += length
    reference = model(padded, attention_mask=read, labels=labels)
    positions = torch.tensor([places])
    output = guess(model, Masked(block, positions, block.gather(1, positions)), numbers)
    torch.testing.assert_close(output.loss, reference.loss)
    own, other = gradients(model, output.loss), gradients(model, reference.loss)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, other[name], atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_document_is_read_as_transformers_reads_it(architecture):
    model = model_of(architecture).eval()
    ids, _ = masked_batch()
    reference = model.base_model(ids).last_hidden_state
    torch.testing.assert_close(hidden_states(model, ids), reference)
    torch.testing.assert_close(hidden_states(model, ids, torch.zeros_like(ids)), reference)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_has_the_shape_that_was_asked_for(architecture):
    model = model_of(architecture)
    assert len(blocks_of(model)) == 3
    assert model.config.vocab_size == 128
    special = {key: value for key, value in model.config.to_dict().items() if key.endswith("token_id")}
    assert special.pop("pad_token_id") == 0
    assert not any(special.values()), special  # transformers' own are those of another vocabulary
    assert longest_sequence(model.config) == 24
    hidden = torch.randn(2, 32)
    assert prediction_head(model)(hidden).shape == (2, 128)
    matrices = sum(p.numel() for block in blocks_of(model) for p in block.parameters() if p.ndim == 2)
    expected = 3 * SHAPE.block_matrix
    assert matrices == expected if architecture != "modernbert" else abs(matrices / expected - 1) < 0.02


@pytest.mark.parametrize("name", ["vit-base", "bamboo-base"])
@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm"])
def test_the_partners_of_bert_base_have_its_parameters(name, architecture):
    with torch.device("meta"):
        model = build_model(build_config(name, architecture))
    blocks = sum(p.numel() for p in blocks_of(model).parameters())
    assert blocks == {"vit-base": 85_054_464, "bamboo-base": 85_174_272}[name]


def test_nothing_asked_for_is_no_loss_and_no_gradient():
    model = model_of("bert")
    _, masked = masked_batch()
    guesses = guess(model, masked._replace(labels=torch.full_like(masked.labels, IGNORED)))
    assert (guesses.loss.item(), guesses.asked.item(), guesses.right.item()) == (0.0, 0, 0)


def test_dropout_is_what_was_asked_for():
    for architecture in ARCHITECTURES:
        model = model_of(architecture, dropout=0.25)
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates - {0.0, 0.25} == set()
        assert 0.25 in rates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gpt"}, "unknown architecture 'gpt'"),
        ({"vocab_size": 0}, "must be positive"),
        ({"dropout": 1.0}, "a share of one"),
        ({"shape": "bambo-base"}, "did you mean 'bamboo-base'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(InputError, match=message):
        build_config(**{"shape": SHAPE, **options})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flops_of_a_training_step_are_three_times_those_that_torch_counts(architecture):
    with torch.device("meta"):
        module = MLMPretraining(shape=Shape(3, 48, 4), architecture=architecture, vocab_size=120, max_positions=24)
        module._trainer = SimpleNamespace(datamodule=SimpleNamespace(length=20))
        places = torch.zeros(1, masked_count(20, module.mask_ratio), dtype=torch.int64)
        with FlopCounterMode(display=False) as forward:
            guess(module.model, Masked(torch.zeros(1, 20, dtype=torch.int64), places, places))
    assert module.flops_per_sample() == pytest.approx(3 * forward.get_total_flops(), rel=0.002)
