"""Tokens of real text per second in a step of masked language modelling, beside transformers' own recipe for it.

The peer is what `run_mlm.py` of transformers trains: the same model with labels for every token, so that every token
goes through the projection to the vocabulary. By default it joins its texts and cuts them into blocks of 128; line by
line it pads each line to 128. Forward, backward and AdamW on one thread; all sides take turns, and a step counts the
tokens that are not padding. Lines are WordNet's glosses.
"""

import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import timm.data
import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerFast

from bamboo.text.data import ShippedEnglish
from bamboo.text.encoder import build_config, build_model
from bamboo.text.masking import Masked, Vocabulary, mask_tokens, masked_count
from bamboo.text.mlm import guess
from bamboo.text.tokenizer import special_ids

LENGTH, BATCH, ROUNDS = 128, 4, 3
MODELS = {"bert-base": ("vit-base", "bert"), "bamboo-base": ("bamboo-base", "roberta-prelayernorm")}


def bench_text() -> dict[str, float]:
    """Tokens per second of each side, and ratios, by shape."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = ShippedEnglish(vocab_size=8192, block_length=LENGTH, batch_size=BATCH)
        data.setup()
        results: dict[str, float] = {}
        for name, (shape, architecture) in MODELS.items():
            torch.manual_seed(0)
            model = build_model(build_config(shape, architecture, vocab_size=30522, dropout=0.0))
            results |= {f"{name}_{key}": value for key, value in _sides(model, data).items()}
        return results
    finally:
        torch.set_num_threads(threads)


def _sides(model: PreTrainedModel, data: ShippedEnglish) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    names = {f"{name}_token": f"[{name.upper()}]" for name in special_ids(data.tokenizer)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=data.tokenizer, **names)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    blocks = [batch["input_ids"] for batch in islice(data.train_dataloader(), ROUNDS + 1)]
    lines = [_padded(tokenizer, start) for start in range(ROUNDS + 1)]

    def ours(number: int) -> int:
        ids = blocks[number]
        _step(optimizer, lambda: guess(model, _masked(ids, data)).loss)
        return ids.numel()

    def joined(number: int) -> int:
        ids, labels = collator.torch_mask_tokens(blocks[number].clone())
        _step(optimizer, lambda: model(ids, labels=labels).loss)
        return ids.numel()

    def line_by_line(number: int) -> int:
        ids, read = lines[number]
        shown, labels = collator.torch_mask_tokens(ids.clone(), special_tokens_mask=(read == 0))
        _step(optimizer, lambda: model(shown, attention_mask=read, labels=labels).loss)
        return int(read.sum())

    sides = {"tokens_per_s": ours, "joined_tokens_per_s": joined, "lines_tokens_per_s": line_by_line}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            tokens = side(number)
            if number:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    result = {name: statistics.median(values) for name, values in rates.items()}
    for peer in ("joined", "lines"):
        pairs = zip(rates["tokens_per_s"], rates[f"{peer}_tokens_per_s"], strict=True)
        result[f"over_{peer}"] = statistics.median(mine / theirs for mine, theirs in pairs)
    return result


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def _masked(ids: Tensor, data: ShippedEnglish) -> Masked:
    numbers = special_ids(data.tokenizer)
    special = torch.zeros(data.tokenizer.get_vocab_size(), dtype=torch.bool)
    special[list(numbers.values())] = True
    vocabulary = Vocabulary(numbers["mask"], special, torch.zeros_like(special))
    return mask_tokens(ids, torch.rand(*ids.shape, 3), masked_count(LENGTH, 0.15), vocabulary)


def _padded(tokenizer: PreTrainedTokenizerFast, number: int) -> tuple[Tensor, Tensor]:
    path = Path(timm.data.__file__).parent / "_info" / "imagenet_synset_to_definition.txt"
    rows = path.read_text(encoding="utf-8").splitlines()
    lines = [rows[(number * BATCH + row) * 997 % len(rows)].split("\t", 1)[1] for row in range(BATCH)]
    encoded = tokenizer(lines, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]
