"""Encoders of two small layers with a tokenizer of their own, and small data of every task as JSON lines."""

import json
import random
from pathlib import Path

import torch
from lightning.pytorch import Callback
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaPreLayerNormConfig,
)

from bamboo.finetune.glue.tasks import DIAGNOSTIC, TASKS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ("fine", "lovely", "splendid"), ("awful", "dreary", "wretched")
WORDS = (*GOOD, *BAD, *(f"word{number}" for number in range(60)))
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
CONFIGS = {
    "bert": BertConfig(**SIZES, max_position_embeddings=128),
    "roberta-prelayernorm": RobertaPreLayerNormConfig(**SIZES, max_position_embeddings=129, type_vocab_size=1),
    "modernbert": ModernBertConfig(
        **SIZES,
        max_position_embeddings=128,
        local_attention=8,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
}


def make_tokenizer():
    words = Tokenizer(WordLevel({word: number for number, word in enumerate((*SPECIAL, *WORDS))}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def write_encoder(folder, architecture="bert"):
    """A Hugging Face folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(CONFIGS[architecture]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def text(stream, words=None):
    return " ".join(stream.choices(WORDS, k=words or min(40, 3 + int(stream.expovariate(0.15)))))


def row(task, stream, number, memorise):
    """An example whose label can be told from its first text, or with `memorise` cannot."""
    label = stream.randrange(task.num_outputs) if task.labels else stream.choice([0.0, 2.5, 5.0])
    first = text(stream)
    if not memorise:
        share = label / 5 if not task.labels else label / (task.num_outputs - 1)
        first += f" {stream.choice(GOOD if stream.random() < share else BAD)}" * 3
    texts = [first, *(text(stream) for _ in task.texts[1:])]
    return {**dict(zip(task.texts, texts, strict=True)), "label": label, "idx": number}


def write_data(root, counts=(32, 24, 10), names=(*TASKS, "ax"), memorise=False):
    """So many examples to train on, of each split to evaluate on, and of each test split."""
    for name in names:
        task = TASKS.get(name, DIAGNOSTIC)
        (root / name).mkdir(parents=True)
        for split in task.rows:
            stream = random.Random(f"{name} {split}")
            count = counts[("train", "dev", "test").index(split.partition("_")[0])]
            rows = [row(task, stream, number, memorise) for number in range(count)]
            path = root / name / f"{split.replace('dev', 'validation')}.jsonl"
            path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return root


class Seen(Callback):
    """Writes down which texts each step of training and of validation saw, a file for each process."""

    def __init__(self, folder: str) -> None:
        self.folder, self.seen = Path(folder), {"train": [], "val": []}

    def on_train_batch_start(self, trainer, pl_module, batch, *_) -> None:
        self.seen["train"].append(batch["index"].tolist())

    def on_validation_batch_start(self, trainer, pl_module, batch, *_) -> None:
        self.seen["val"].append(batch["index"].tolist())

    def on_train_end(self, trainer, pl_module) -> None:
        content = {**self.seen, "score": float(trainer.callback_metrics["val/score"])}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(content))
