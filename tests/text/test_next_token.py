"""Next-token prediction: the loss of transformers, documents, runs, continuations, and what is refused."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.text.checkpoints import load_text
from bamboo.text.classification import TextClassification
from bamboo.text.continuing import continue_text
from bamboo.text.data import PackedCorpus
from bamboo.text.encoder import build_config, build_model, hidden_states
from bamboo.text.filling import fill
from bamboo.text.masking import IGNORED
from bamboo.text.mlm import documents_of
from bamboo.text.next_token import guess_next, next_tokens
from bamboo.text.pretraining import MLMPretraining
from tests.text.runs import corpus_options, fit, last

ARCHITECTURES = ("bert", "roberta", "roberta-prelayernorm")
CLS, SEP = 2, 3


def model_of(architecture, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "max_positions": 24}
    return build_model(build_config(Shape(2, 32, 4), architecture, objective="causal", **sizes, **options))


def blocks(rows=3, length=16):
    ids = torch.randint(5, 120, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_transformers(architecture):
    model, ids = model_of(architecture), blocks()
    guesses = guess_next(model, ids, next_tokens(ids))
    own = torch.autograd.grad(guesses.loss, [*model.base_model.parameters()], allow_unused=True)
    asked = ids.clone()  # transformers shifts labels by itself
    asked[:, -1] = IGNORED
    output = model(ids, labels=asked)
    others = torch.autograd.grad(output.loss, [*model.base_model.parameters()], allow_unused=True)
    torch.testing.assert_close(guesses.loss, output.loss)
    for one, other in zip(own, others, strict=True):
        torch.testing.assert_close(one, other)
    assert guesses.asked == 3 * 14
    assert guesses.right == (output.logits[:, :-2].argmax(-1) == ids[:, 1:-1]).sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["learned", "alibi"])
def test_nothing_is_read_of_what_comes_later(architecture, positions):
    model, ids = model_of(architecture, positions=positions).eval(), blocks()
    other = ids.clone()
    other[:, 9:] = 7
    for documents in (None, torch.zeros_like(ids)):
        one, changed = (hidden_states(model, each, documents) for each in (ids, other))
        torch.testing.assert_close(one[:, :9], changed[:, :9])
        assert not torch.allclose(one[:, 9:], changed[:, 9:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_of_a_block_have_the_loss_that_they_have_by_themselves(architecture):
    model, ids = model_of(architecture).eval(), blocks(rows=2)
    ids[:, 6] = SEP
    documents = documents_of(ids, SEP)
    labels = next_tokens(ids, documents)
    assert labels[0].tolist() == [*ids[0, 1:7].tolist(), IGNORED, *ids[0, 8:15].tolist(), IGNORED, IGNORED]
    together = guess_next(model, ids, labels, documents)
    logits = [model(ids[:, :7]).logits[:, :-1], model(ids[:, 7:]).logits[:, :-2]]
    asked = [ids[:, 1:7], ids[:, 8:15]]
    alone = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1), torch.cat(asked, 1).flatten())
    torch.testing.assert_close(together.loss, alone)
    assert together.asked == 2 * 13


def test_every_token_but_the_end_of_the_block_is_asked_for():
    ids = torch.tensor([[CLS, 8, SEP, 9, 10, SEP]])
    assert next_tokens(ids).tolist() == [[8, SEP, 9, 10, IGNORED, IGNORED]]


def test_flops_are_those_of_a_step():
    with torch.device("meta"):
        module = MLMPretraining(shape=Shape(3, 48, 4), vocab_size=120, objective="causal")
        ids = torch.zeros(1, 20, dtype=torch.int64)
        with FlopCounterMode(display=False) as forward:
            guess_next(module.model, ids, ids)
    assert module.flops_per_sample(20) == pytest.approx(3 * forward.get_total_flops(), rel=0.002)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, corpus):
    """The checkpoint and the output of a short causal run."""
    folder = tmp_path_factory.mktemp("causal")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = ["--trainer.max_steps=6", "--trainer.val_check_interval=6", "--model.init_args.objective=causal"]
        assert fit(*corpus_options(corpus), *steps) == 0
    return last(folder)


def test_a_run_ends_with_perplexity_over_all_tokens_and_with_continuations(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--model.init_args.objective=causal"]
    assert fit(*corpus_options(corpus), *steps) == 0
    shown = capsys.readouterr().out
    assert "next tokens guessed right" in shown
    assert re.search(r"The capital of France is: +t", shown)
    perplexity = float(re.search(r"perplexity: +([\d.]+)", shown)[1])
    model = load_text(last(tmp_path)).model
    data = PackedCorpus(str(corpus), block_length=32, batch_size=8)
    data.setup()
    total, count = 0.0, 0
    for batch in data.val_dataloader():
        ids = batch["input_ids"]
        logits = model(ids).logits[:, :-2].flatten(0, 1)
        total += F.cross_entropy(logits, ids[:, 1:-1].flatten(), reduction="sum").item()
        count += ids[:, 1:-1].numel()
    assert perplexity == pytest.approx(math.exp(total / count), rel=1e-3)


def test_a_causal_model_goes_to_hugging_face_and_comes_back(causal, tmp_path, capsys):
    assert main(["export", str(causal), "--format", "hf", "--out", str(tmp_path / "out")]) == 0
    assert "AutoModelForCausalLM" in capsys.readouterr().out
    assert "pipeline_tag: text-generation" in (tmp_path / "out/README.md").read_text()
    own = load_text(causal).model
    other, back = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), load_text(tmp_path / "out").model
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("the cat sat", return_tensors="pt")["input_ids"]
    for model in (other, back):
        torch.testing.assert_close(model(ids).logits, own(ids).logits)
    assert other.generate(ids[:, :-1], max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 2)


def test_greedy_continuation_takes_the_most_probable_token_each_time(causal):
    model, tokenizer, _ = load_text(causal)
    backend = tokenizer.backend_tokenizer
    ids = [backend.token_to_id("[CLS]"), *backend.encode("the cat", add_special_tokens=False).ids]
    unwritten = [backend.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[MASK]")]
    for _ in range(8):  # without a cache
        logits = model(torch.tensor([ids])).logits[0, -1]
        logits[unwritten] = -torch.inf
        logits[backend.get_vocab_size() :] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == backend.token_to_id("[SEP]"):
            break
    assert continue_text(model, tokenizer, "the cat", 8) == backend.decode(ids[1:])


def test_draws_depend_on_the_seed_alone(causal):
    model, tokenizer, _ = load_text(causal)
    state = torch.get_rng_state()
    texts = [continue_text(model, tokenizer, "the cat", 12, sample=True, seed=seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), state)
    cold = continue_text(model, tokenizer, "the cat", 12, sample=True, temperature=1e-4)
    assert cold == continue_text(model, tokenizer, "the cat", 12)


def test_a_text_ends_where_the_positions_do(causal):
    model, tokenizer, _ = load_text(causal)
    long = "the cat sat on a mat " * 9
    written = tokenizer.backend_tokenizer.encode(continue_text(model, tokenizer, long, 500)).ids
    assert len(written) <= 66
    with pytest.raises(InputError, match="leave no room"):
        continue_text(model, tokenizer, long * 9)


def test_fill_continues_a_text_as_typed(causal, capsys):
    assert main(["fill", "the cat sat", "--model", str(causal), "--tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the cat sat")
    assert main(["fill", "the cat", "--model", str(causal), "--sample", "--temperature", "0.8", "--seed", "3"]) == 0


def test_a_causal_model_is_profiled_with_its_attention(causal, corpus, tmp_path):
    out = ["--out", str(tmp_path), "--measures", "excess_similarity", "attention", "--max-length", "24"]
    assert main(["profile", str(causal), "--data", str(corpus), "--samples", "8", *out]) == 0
    assert "excess_similarity" in (tmp_path / "profile.csv").read_text()


def test_weights_go_on_as_what_they_are(causal, checkpoint, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*corpus_options(corpus), "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert fit(*options, f"--model.init_args.init_from={causal}", "--model.init_args.objective=causal") == 0
    capsys.readouterr()
    assert fit(*options, f"--model.init_args.init_from={causal}") == 2
    assert "give --model.init_args.objective causal" in one_line(capsys)
    deeper = ["--model.init_args.shape", '{"depth": 4, "width": 32, "heads": 2}', "--model.init_args.stack=identity"]
    started = [f"--model.init_args.init_from={causal}", "--model.init_args.objective=causal"]
    assert fit(*options, *started, *deeper) == 0


def test_a_run_goes_on_as_what_it_is(causal, checkpoint, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*corpus_options(corpus), "--trainer.max_steps=8", "--trainer.limit_val_batches=0"]
    assert fit(*options, "--ckpt_path", str(causal)) == 2
    assert "give --model.init_args.objective causal" in one_line(capsys)
    none = ["--model.init_args.objective=causal", "--model.init_args.positions=none"]
    assert fit(*options, *none) == 0  # of the same names and sizes as with ALiBi
    alibi = ["--model.init_args.objective=causal", "--model.init_args.positions=alibi"]
    capsys.readouterr()
    assert fit(*options, *alibi, "--ckpt_path", str(last(tmp_path, version=1))) == 2
    assert "the checkpoint has positions none, and the configuration says alibi" in one_line(capsys)


def one_line(capsys):
    """What was said last, which is one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bamboo: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a [MASK] sat"], "fills in nothing"),
        (["a cat", "--top", "3"], "--top is for"),
        (["a cat", "--temperature", "2"], "--temperature for drawn tokens"),
        (["a cat", "--tokens", "0"], "at least 1"),
        (["a cat", "--sample", "--temperature", "0"], "above 0"),
    ],
)
def test_what_a_causal_model_cannot_fill_in_is_said_in_one_line(causal, capsys, arguments, said):
    assert main(["fill", *arguments, "--model", str(causal)]) == 2
    assert said in one_line(capsys)


def test_a_masked_model_continues_nothing(checkpoint, causal, capsys):
    assert main(["fill", "a [MASK] sat", "--model", str(checkpoint), "--tokens", "3"]) == 2
    assert "are for causal models" in one_line(capsys)
    with pytest.raises(InputError, match="fills in nothing"):
        fill(*load_text(causal)[:2], "a [MASK] sat")


def test_what_no_causal_model_is_built_for_is_refused(causal):
    with pytest.raises(InputError, match="modernbert reads in both directions"):
        build_config(Shape(2, 32, 2), "modernbert", objective="causal")
    with pytest.raises(InputError, match="objective"):
        build_config(Shape(2, 32, 2), objective="backwards")
    with pytest.raises(InputError, match=r"leave model.init_args.objective out"):
        TextClassification(shape={"depth": 2, "width": 32, "heads": 2}, objective="causal")
    from bamboo.finetune.glue.encoders import open_encoder

    with pytest.raises(InputError, match="is causal"):
        open_encoder(causal, 2)
