import torch

from bamboo.text.masking import IGNORED, Vocabulary, mask_tokens, masked_count

PAD, UNK, CLS, SEP, MASK = range(5)


def vocabulary(size=100, continues=()):
    special = torch.zeros(size, dtype=torch.bool)
    special[:5] = True
    follows = torch.zeros(size, dtype=torch.bool)
    follows[list(continues)] = True
    return Vocabulary(MASK, special, follows)


def random_ids(rows=64, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, length), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids, torch.rand(rows, length, 3, generator=generator)


def test_the_share_of_a_block_is_rounded_and_never_nothing():
    assert [masked_count(128, 0.15), masked_count(128, 0.25), masked_count(8, 0.01)] == [19, 32, 1]


def test_the_same_number_of_tokens_is_asked_for_in_every_sequence_and_none_is_special():
    ids, noise = random_ids()
    ids[:, 20] = SEP
    masked = mask_tokens(ids, noise, 10, vocabulary())
    assert masked.positions.shape == masked.labels.shape == (64, 10)
    assert (masked.labels >= 5).all()
    assert torch.equal(masked.labels, ids.gather(1, masked.positions))
    assert all(len(set(row)) == 10 for row in masked.positions.tolist())
    untouched = torch.ones_like(ids, dtype=torch.bool).scatter(1, masked.positions, False)
    assert torch.equal(masked.input_ids[untouched], ids[untouched])


def test_a_hand_written_sequence():
    ids = torch.tensor([[CLS, 10, 11, 12, 13, SEP]])
    choice = [0.0, 0.9, 0.2, 0.1, 0.3, 0.0]  # the specials have the lowest, and are not chosen
    fate = [0.0, 0.0, 0.85, 0.79, 0.95, 0.0]
    draw = [0.0, 0.0, 0.42, 0.0, 0.0, 0.0]
    masked = mask_tokens(ids, torch.tensor([choice, fate, draw]).T[None], 3, vocabulary())
    assert masked.positions.tolist() == [[3, 2, 4]]
    assert masked.labels.tolist() == [[12, 11, 13]]
    assert masked.input_ids.tolist() == [[CLS, 10, 42, MASK, 13, SEP]]


def test_eighty_per_cent_are_hidden_ten_random_ten_left():
    ids, noise = random_ids(rows=2000)
    masked = mask_tokens(ids, noise, 10, vocabulary())
    shown = masked.input_ids.gather(1, masked.positions)
    hidden, kept = (shown == MASK).float().mean(), (shown == masked.labels).float().mean()
    assert abs(hidden - 0.8 - 0.1 / 100) < 0.01  # a random token is [MASK] once in a hundred
    assert abs(kept - 0.1 - 0.1 / 100) < 0.01
    assert shown.max() == 99


def test_sequences_with_too_little_to_mask_ask_for_less():
    ids = torch.tensor([[CLS, 7, SEP, 8, SEP, SEP]])
    masked = mask_tokens(ids, torch.rand(1, 6, 3), 4, vocabulary())
    assert sorted(masked.labels[0].tolist()) == [IGNORED, IGNORED, 7, 8]
    specials = ids < 5
    assert torch.equal(masked.input_ids[specials], ids[specials])


def test_whole_words_are_masked_whole_or_not_at_all():
    words = vocabulary(continues=range(50, 100))
    ids, noise = random_ids(rows=500)
    masked = mask_tokens(ids, noise, 10, words, whole_words=True)
    for row, positions, labels in zip(ids.tolist(), masked.positions.tolist(), masked.labels.tolist(), strict=True):
        asked = {place for place, label in zip(positions, labels, strict=True) if label != IGNORED}
        assert 10 - len(asked) >= 0
        for place in range(1, 39):
            if row[place] >= 50 and row[place - 1] >= 5:  # a piece and the one before it
                assert (place in asked) == (place - 1 in asked)
    assert (masked.labels != IGNORED).float().mean() > 0.85
    ignored = masked.labels == IGNORED
    assert torch.equal(masked.input_ids.gather(1, masked.positions)[ignored], ids.gather(1, masked.positions)[ignored])


def test_whole_words_of_one_piece_are_masked_like_tokens():
    ids, noise = random_ids()
    plain, whole = (mask_tokens(ids, noise, 10, vocabulary(), flag) for flag in (False, True))
    assert all(torch.equal(left, right) for left, right in zip(plain, whole, strict=True))
