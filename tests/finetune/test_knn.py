import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from bamboo.finetune.knn import NeighbourProbe, classes_by_votes, nearest_neighbour_accuracy
from bamboo.shapes import Shape
from bamboo.vision.data import Digits
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale


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
    assert nearest_neighbour_accuracy(TRAIN, TEST, k=1) == pytest.approx(expected)


def test_many_neighbours_are_scikit_learns_with_exponential_weights():
    def votes(distances):  # the cosine distance is 1 - s
        return np.exp(-distances / 0.07)

    peer = KNeighborsClassifier(20, metric="cosine", weights=votes).fit(TRAIN[0].numpy(), TRAIN[1].numpy())
    expected = peer.score(TEST[0].numpy(), TEST[1].numpy())
    assert nearest_neighbour_accuracy(TRAIN, TEST, k=20) == pytest.approx(expected)


def test_neither_chunks_nor_lengths_of_features_nor_other_elections_matter():
    whole = classes_by_votes(TRAIN, TEST[0], [20, 5])
    assert torch.equal(classes_by_votes(TRAIN, TEST[0], [20, 5], chunk=7), whole)
    normalised = F.normalize(TRAIN[0], dim=1), TRAIN[1]
    assert torch.equal(classes_by_votes(normalised, 3 * TEST[0], [20, 5]), whole)
    assert torch.equal(classes_by_votes(TRAIN, TEST[0], [5])[0], whole[1])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("temperature", [0.07, 0.5, 0.02])
def test_votes_are_those_of_the_evaluation_of_dino_written_out(temperature):
    """Each neighbour's cosine s counts exp(s / T) for its class; the classes by their sums, the largest first."""
    bank, labels = TRAIN[0].double().numpy(), TRAIN[1].tolist()
    elections = (1, 5, 10, 20, 100, 500)
    expected = []
    for row in TEST[0].double().numpy():
        cosines = [float(row @ other / (np.linalg.norm(row) * np.linalg.norm(other))) for other in bank]
        order = sorted(range(len(bank)), key=lambda place: -cosines[place])
        expected.append([])
        for k in elections:
            votes = dict.fromkeys(range(4), 0.0)
            for place in order[:k]:
                votes[labels[place]] += math.exp(cosines[place] / temperature)
            ranked = sorted((label for label in votes if votes[label]), key=lambda label: -votes[label])
            expected[-1].append((ranked + 5 * [-1])[:5])
    elected = classes_by_votes(TRAIN, TEST[0], elections, temperature)
    assert elected.transpose(0, 1).tolist() == expected


class Trainer:
    """As much of Lightning's as the probe asks for, with digits whose reading is counted."""

    def __init__(self, precision="32-true", step=0, **data):
        self.datamodule = Digits(**{"image_size": 8, "batch_size": 100, **data})
        self.reads = []
        loaders = self.datamodule.probe_loaders
        self.datamodule.probe_loaders = lambda limit, shared: self.reads.append((limit, shared)) or loaders(limit)
        self.global_step, self.strategy = step, SimpleNamespace(root_device=torch.device("cpu"))
        self.precision_plugin = MixedPrecision("bf16-mixed", "cpu") if precision == "bf16-mixed" else Precision()
        size = self.datamodule.size[0]
        mae = build_mae(Shape(1, 16, 2), size, 4, 1, decoder_shape=Shape(1, 16, 2))
        self.lightning_module = SimpleNamespace(mae=mae, pixels=PixelScale(1))


def baselines(probe, trainer):
    probe.on_train_start(trainer, trainer.lightning_module)
    return set(probe.accuracy)


def test_baselines_are_measured_before_the_first_step_of_small_images_and_data_sets():
    both = {"raw pixels", "untrained encoder"}
    assert baselines(NeighbourProbe(), Trainer(shots=5)) == both
    assert baselines(NeighbourProbe(), Trainer(shots=5, image_size=32)) == both  # 1,024 values
    assert baselines(NeighbourProbe(), Trainer(shots=5, image_size=36)) == {"untrained encoder"}
    assert baselines(NeighbourProbe(max_samples=49), Trainer(shots=5)) == set()
    assert baselines(NeighbourProbe(), Trainer(shots=5, step=3)) == set()  # the weights are not untrained any more


def test_images_are_read_by_share_and_features_taken_in_the_precision_of_training():
    trainer, kinds = Trainer("bf16-mixed", shots=5), set()
    linear = trainer.lightning_module.mae.encoder.blocks[0].mlp.fc1
    linear.register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
    baselines(NeighbourProbe(max_samples=60), trainer)
    assert trainer.reads == [(60, True)]
    assert kinds == {torch.bfloat16}
