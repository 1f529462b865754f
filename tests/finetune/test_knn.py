import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from bamboo.finetune.knn import nearest_neighbour_accuracy


def clouds(count, seed):
    """Overlapping clouds of four classes in eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    centres = 2 * torch.eye(8)[:4]
    return centres[labels] + torch.randn(count, 8, generator=generator), labels


TRAIN, TEST = clouds(120, 0), clouds(50, 1)


def test_one_neighbour_is_scikit_learns_by_cosine():
    peer = KNeighborsClassifier(1, metric="cosine").fit(TRAIN[0].numpy(), TRAIN[1].numpy())
    expected = peer.score(TEST[0].numpy(), TEST[1].numpy())
    assert 0.5 < expected < 1
    assert nearest_neighbour_accuracy(TRAIN, TEST, neighbours=1) == pytest.approx(expected)


def test_many_neighbours_are_scikit_learns_with_exponential_weights():
    def votes(distances):  # the cosine distance is 1 - s
        return np.exp(-distances / 0.07)

    peer = KNeighborsClassifier(20, metric="cosine", weights=votes).fit(TRAIN[0].numpy(), TRAIN[1].numpy())
    expected = peer.score(TEST[0].numpy(), TEST[1].numpy())
    assert nearest_neighbour_accuracy(TRAIN, TEST, neighbours=20) == pytest.approx(expected)


def test_neither_chunks_nor_lengths_of_features_matter():
    whole = nearest_neighbour_accuracy(TRAIN, TEST)
    assert nearest_neighbour_accuracy(TRAIN, TEST, chunk=7) == whole
    assert nearest_neighbour_accuracy((F.normalize(TRAIN[0], dim=1), TRAIN[1]), (3 * TEST[0], TEST[1])) == whole


def test_more_neighbours_than_samples_are_all_of_them():
    assert 0 <= nearest_neighbour_accuracy((TRAIN[0][:5], TRAIN[1][:5]), TEST, neighbours=20) <= 1
