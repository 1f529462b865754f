"""Blocks of a token stream: what workers get of it, and how many are held out."""

import pickle
from itertools import chain

import numpy as np
import pytest
import torch

from bamboo.errors import InputError
from bamboo.sampling import NOTHING, EvalSampler
from bamboo.text.corpus import Corpus
from bamboo.text.data import Blocks, PackedCorpus


def test_a_mapped_stream_goes_to_a_worker_by_its_name(corpus):
    opened = Corpus.open(corpus)
    blocks = Blocks(opened.train, 16, opened.tokenizer)
    sent = pickle.dumps(blocks)
    assert len(sent) < 1000 < blocks.stream.nbytes
    received = pickle.loads(sent)
    assert isinstance(received.stream, np.memmap)
    assert np.array_equal(received.stream, opened.train)
    assert torch.equal(received.batch([3])["input_ids"], blocks.batch([3])["input_ids"])


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_part_of_a_map_and_an_array_go_to_a_worker_as_they_are(corpus, in_memory):
    opened = Corpus.open(corpus)
    stream = np.array(opened.train) if in_memory else opened.train[100:500]
    received = pickle.loads(pickle.dumps(Blocks(stream, 16, opened.tokenizer)))
    assert np.array_equal(received.stream, stream)


def test_blocks_hold_every_token_of_the_stream_once(corpus):
    opened = Corpus.open(corpus)
    blocks = Blocks(opened.train, 16, opened.tokenizer)
    together = blocks.batch(range(len(blocks)))["input_ids"][:, 1:-1].flatten()
    assert together.tolist() == opened.train[: len(together)].tolist()
    assert len(opened.train) - len(together) < 14


def test_a_batch_leaves_out_what_is_no_sample(corpus):
    opened = Corpus.open(corpus)
    blocks = Blocks(opened.train, 16, opened.tokenizer)
    assert torch.equal(blocks.__getitems__([2, NOTHING])["input_ids"], blocks.batch([2])["input_ids"])
    assert blocks.__getitems__([NOTHING, NOTHING])["special_tokens_mask"].shape == (0, 16)
    assert torch.equal(blocks.__getitems__([(5, 7)])["input_ids"], blocks.batch([5])["input_ids"])


def blocks_seen(data):
    return [row[1:-1].tolist() for batch in data.val_dataloader() for row in batch["input_ids"]]


def test_validation_reads_a_bounded_evenly_spread_part_each_block_once_over_all_ranks(corpus):
    whole = blocks_seen(PackedCorpus(str(corpus), block_length=16, batch_size=4, val_blocks=None))
    assert len(whole) == len(Corpus.open(corpus).val) // 14 > 20
    data = PackedCorpus(str(corpus), block_length=16, batch_size=4, val_blocks=7)
    expected = [whole[place * len(whole) // 7] for place in range(7)]
    assert blocks_seen(data) == blocks_seen(data) == expected
    blocks = data.samples("val")
    shares = [[i for i in EvalSampler(blocks, 2, 2, rank) if i != NOTHING] for rank in (0, 1)]
    assert sorted(chain(*shares)) == list(range(7)) == list(range(len(blocks)))
    assert blocks_seen(PackedCorpus(str(corpus), block_length=16, batch_size=4)) == whole  # fewer than the default
    with pytest.raises(InputError, match="val_blocks must be positive, or null"):
        PackedCorpus(str(corpus), val_blocks=0)
