"""Examples per second in fine-tuning and evaluation: batches by length against padding to 128, as run_glue does.

Both sides train the same encoder, a BERT of 6 x 384 with random weights, at equal hyperparameters: batches of 16,
AdamW, gradients clipped at a norm of 1, dropout 0.1. The peer is a loop over transformers' model on texts padded to
128, the default of transformers' run_glue example, with its batches of 8 in evaluation. Ours is what `bamboo glue` does
in a step: its sampler, its data set, and its optimizer. Sides take turns on one thread, so that other work slows both
alike.

Lengths are those of the real training sets of CoLA and SST-2 under BERT's vocabulary, 11.3 and 13.3 tokens in the mean:
their 5th to 99th percentiles are below. QNLI is not at hand: its lengths are log-normal with a mean of 50 tokens, which
is an assumption about the task and not a measurement. What a text says does not matter to the time that it takes, so
token numbers are random.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from bamboo.finetune.glue.batches import Batches, EvalBatches, Tokens, TrainBatches
from bamboo.finetune.glue.layer_decay import layer_groups
from bamboo.finetune.glue.recipes import CLIP, Setting
from bamboo.optimizers import build_optimizer

LONGEST, BATCH, PEER_EVAL_BATCH, MAX_TOKENS, TEXTS = 128, 16, 8, 8192, 3200
PERCENTILES = {"cola": (4, 6, 9, 10, 13, 20, 25, 47), "sst2": (3, 4, 6, 10, 18, 33, 44, 66)}
"""Tokens of the real texts, [CLS] and [SEP] included: least, 5 %, 25 %, 50 %, 75 %, 95 %, 99 % and most."""


def lengths(task: str) -> np.ndarray[Any, Any]:
    """Numbers of tokens of `TEXTS` texts, in a random order."""
    random = np.random.default_rng(0)
    if task in PERCENTILES:
        shares = random.permutation(TEXTS) / TEXTS
        drawn = np.interp(shares, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1), PERCENTILES[task])
    else:
        drawn = random.lognormal(np.log(50) - 0.45**2 / 2, 0.45, TEXTS)
    return drawn.round().clip(3, LONGEST).astype(np.int64)


def texts(task: str) -> Batches:
    """Random tokens of real lengths, with random labels."""
    random = np.random.default_rng(1)
    ids = [torch.from_numpy(random.integers(1000, 30000, length, dtype=np.int32)) for length in lengths(task)]
    tokens = Tokens(ids, [torch.zeros(len(text), dtype=torch.int8) for text in ids])
    return Batches(tokens, random.integers(0, 2, TEXTS).tolist())


def padded(data: Batches, order: np.ndarray[Any, Any], batch: int) -> Iterator[dict[str, Tensor]]:
    """Batches in an order, each text padded to `LONGEST`, as run_glue's tokenizer leaves them."""
    for start in range(0, len(order), batch):
        one = data[order[start : start + batch].tolist()]
        wide = LONGEST - one["input_ids"].shape[1]
        sequences = ("input_ids", "attention_mask", "token_type_ids")
        yield {**one, **{name: F.pad(one[name], (0, wide)) for name in sequences}}


def encoder() -> BertForSequenceClassification:
    """A BERT of 6 x 384, as small encoders are."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What either side computes."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return model(**inputs).logits  # type: ignore[no-any-return]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[dict[str, Tensor]]) -> float:
    """Examples per second of some steps."""
    model.train()
    start, count = time.perf_counter(), 0
    for batch in batches:
        loss = F.cross_entropy(logits(model, batch), batch["label"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        count += len(batch["label"])
    return count / (time.perf_counter() - start)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> float:
    """Examples per second of a pass."""
    model.eval()
    start, count = time.perf_counter(), 0
    for batch in batches:
        logits(model, batch).argmax(dim=1)
        count += len(batch["label"])
    return count / (time.perf_counter() - start)


def measure(task: str, rounds: int = 3, share: int = 16) -> dict[str, float]:
    """Median rates of both sides, and the medians of the ratios within a round.

    Args:
        task: whose lengths to take.
        rounds: how often both sides take a turn.
        share: evaluation runs over one text in so many.
    """
    data, order = texts(task), np.random.default_rng(2).permutation(TEXTS)
    few = Batches(_some(data.tokens, range(0, TEXTS, share)), [0] * len(range(0, TEXTS, share)))
    models = {"ours": encoder(), "peer": encoder()}
    optimizers = {
        "ours": build_optimizer(layer_groups(models["ours"], 1.0, 0.0), Setting().recipe),
        "peer": torch.optim.AdamW(models["peer"].parameters(), lr=4e-5, weight_decay=0.0, fused=True),
    }
    texts_lengths = data.tokens.lengths
    epoch = sorted(TrainBatches(data, BATCH), key=lambda one: max(texts_lengths[one]))
    spread = epoch[len(epoch) // 16 :: len(epoch) // 8]  # eight steps, short and long as in the whole epoch
    sides: dict[str, Callable[[], float]] = {
        "ours_train": lambda: train(models["ours"], optimizers["ours"], (data[one] for one in spread)),
        "peer_train": lambda: train(models["peer"], optimizers["peer"], islice(padded(data, order, BATCH), 1)),
        "ours_eval": lambda: evaluate(models["ours"], (few[one] for one in EvalBatches(few, MAX_TOKENS))),
        "peer_eval": lambda: evaluate(models["peer"], islice(padded(few, np.arange(len(few)), PEER_EVAL_BATCH), 3)),
    }
    found = [{name: run() for name, run in sides.items()} for _ in range(rounds + 1)][1:]  # the first one warms up
    result = {f"{task}_{name}": statistics.median(one[name] for one in found) for name in sides}
    for stage in ("train", "eval"):
        ratios = (one[f"ours_{stage}"] / one[f"peer_{stage}"] for one in found)
        result[f"{task}_{stage}_ratio"] = statistics.median(ratios)
    masks = [data[one]["attention_mask"] for one in epoch]
    result[f"{task}_padding"] = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    return result


def _some(tokens: Tokens, rows: range) -> Tokens:
    assert tokens.types is not None
    return Tokens([tokens.ids[row] for row in rows], [tokens.types[row] for row in rows])


def bench_glue() -> dict[str, float]:
    """Rates and ratios of CoLA, SST-2 and QNLI: 3 and more for the first two, 1.8 and more for the last."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        result = {name: value for task in ("cola", "sst2", "qnli") for name, value in measure(task).items()}
    torch.set_num_threads(threads)
    return result


if __name__ == "__main__":
    for key, value in bench_glue().items():
        print(f"{key:<20} {value:10.3f}")
