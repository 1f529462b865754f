"""Batches by length hold every text once, stay random, and can be restarted anywhere."""

import json
import random

import numpy as np
import pytest
import torch

from bamboo.errors import InputError
from bamboo.finetune.glue.batches import Batches, EvalBatches, Tokens, TrainBatches, tokenise
from bamboo.sampling import Loader
from tests.finetune.glue.tiny import make_tokenizer, text


def batches(lengths, labels=None):
    """Texts of given lengths, whose tokens are their own number."""
    ids = [torch.full((length,), number, dtype=torch.int32) for number, length in enumerate(lengths)]
    return Batches(Tokens(ids, None), labels)


def skewed(count, seed=0):
    stream = random.Random(seed)
    return [min(60, 3 + int(stream.expovariate(0.1))) for _ in range(count)]


def padding(data, lists):
    masks = [data[one]["attention_mask"] for one in lists]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pairs", [False, True], ids=["single texts", "pairs"])
def test_padded_batches_are_those_of_the_tokenizer(pairs, side):
    tokenizer, stream = make_tokenizer(), random.Random(0)
    tokenizer.padding_side = side
    first, second = ([text(stream) for _ in range(50)] for _ in range(2))
    second = second if pairs else None
    tokens = tokenise(tokenizer, first, second, max_length=24)
    found = Batches(tokens, list(range(50)), tokenizer.pad_token_id, side)[range(50)]
    options = {"truncation": True, "max_length": 24, "padding": "longest", "return_token_type_ids": True}
    for name, expected in tokenizer(first, second, **options, return_tensors="pt").items():
        assert torch.equal(found[name].long(), expected), name
    assert torch.equal(found["label"], torch.arange(50))


def test_a_batch_is_as_wide_as_its_longest_text_alone():
    data = batches([5, 2, 3, 40], labels=[7, 8, 9, 10])
    batch = data[[2, 0]]
    assert batch["input_ids"].tolist() == [[2, 2, 2, 0, 0], [0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert (batch["index"].tolist(), batch["label"].tolist()) == ([2, 0], [9, 7])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 16, 97, 1000])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_an_epoch_holds_every_text_once_in_equally_many_batches_on_every_process(world, count, batch):
    data = batches(skewed(count))
    found = [list(TrainBatches(data, batch, 0, world, rank)) for rank in range(world)]
    assert len({len(steps) for steps in found}) == 1
    assert len(found[0]) == len(TrainBatches(data, batch, 0, world, 0))
    assert sorted(index for steps in found for step in steps for index in step) == list(range(count))
    sizes = [sum(map(len, step)) for step in zip(*found, strict=True)]
    assert max(sizes) - min(sizes) <= 1  # no step sees only a few
    assert all(step for steps in found for step in steps)
    if batch > 1:
        assert max(len(step) for steps in found for step in steps) <= batch


@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_together_see_what_one_with_the_whole_batch_sees(world):
    data = batches(skewed(500))
    whole = TrainBatches(data, 4 * world, seed=3)
    shares = [list(TrainBatches(data, 4, 3, world, rank)) for rank in range(world)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(step) == sorted(index for part in parts for index in part)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    data = batches(skewed(300))
    sampler = TrainBatches(data, 8, seed=1)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert {frozenset(step) for step in second} != {frozenset(step) for step in first}  # other company, too
    assert list(TrainBatches(data, 8, seed=2)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_of_an_epoch_are_not_in_the_order_of_their_length():
    data = batches(skewed(3200))
    lengths = data.tokens.lengths
    widths = [max(lengths[step]) for step in TrainBatches(data, 16)]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.25


def test_little_is_padded_where_a_random_order_pads_half():
    data = batches(skewed(2000))
    assert padding(data, TrainBatches(data, 16, pool=0)) > 0.45
    assert padding(data, TrainBatches(data, 16)) < 0.08
    assert padding(data, EvalBatches(data, 512)) < 0.05


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 50, 999])
@pytest.mark.parametrize("bound", [1, 64, 1000])
def test_evaluation_holds_every_text_once_within_the_bound(world, count, bound):
    data = batches(skewed(count))
    found = [list(EvalBatches(data, bound, world, rank)) for rank in range(world)]
    assert len({len(steps) for steps in found}) == 1
    assert len(found[0]) == len(EvalBatches(data, bound, world, 0))
    assert sorted(index for steps in found for step in steps for index in step) == list(range(count))
    for steps in found:
        for step in steps:
            assert step or count < world
            # The last batch may have taken one text that would have left another process without any.
            assert len(step) <= 2 or data[step]["input_ids"][1:].numel() <= bound


@pytest.mark.parametrize("start", [0, 1, 7])
def test_an_epoch_goes_on_in_its_middle_with_what_was_left(start):
    data = batches(skewed(160))

    def loader():
        one = Loader(data, batch_size=None, sampler=TrainBatches(data, 16, seed=5))
        one.sampler.set_epoch(2)
        return one

    whole = [batch["index"].tolist() for batch in loader()]
    interrupted = loader()
    batches_seen = iter(interrupted)
    for _ in range(start):
        next(batches_seen)
    rest = loader()
    rest.load_state_dict(json.loads(json.dumps(interrupted.state_dict())) | {"epoch": 2})
    assert [batch["index"].tolist() for batch in rest] == whole[start:]


def test_fewer_texts_than_processes_are_refused():
    with pytest.raises(InputError, match=r"1 training texts are not enough for 2 process"):
        TrainBatches(batches([4]), 16, world=2)
