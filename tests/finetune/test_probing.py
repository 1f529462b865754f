"""The linear probe of every layer, beside scikit-learn's, and which layer it calls the best."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection

from bamboo.finetune import commands, probing
from bamboo.finetune.probing import LayerFeatures, choose, probe_accuracies, project
from bamboo.study import probes
from bamboo.study.spec import Evaluation

CPU = torch.device("cpu")


def layers_of(count, seed, spreads):
    """Five overlapping clouds in eight dimensions of very different scales; each layer has a spread of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    centres = 3 * torch.eye(8)[labels]
    scales = 10.0 ** torch.arange(-4, 4)
    rows = [scales * (centres + spread * torch.randn(count, 8, generator=generator)) + 5 for spread in spreads]
    return LayerFeatures(torch.stack(rows), labels, torch.zeros(len(spreads)))


def test_probes_are_as_good_as_scikit_learns_logistic_regression():
    train, test = (layers_of(count, seed, (3.0, 1.5, 1.0)) for count, seed in ((1000, 0), (4000, 1)))
    expected = []
    for rows, others in zip(train.features.numpy(), test.features.numpy(), strict=True):
        scaler = StandardScaler().fit(rows)
        peer = LogisticRegression(C=np.inf, max_iter=1000).fit(scaler.transform(rows), train.labels.numpy())
        expected.append(peer.score(scaler.transform(others), test.labels.numpy()))
    assert expected == sorted(expected)
    assert 0.3 < expected[0] < 0.7 < expected[1] < expected[2] < 0.98
    assert probe_accuracies(train, test, CPU)[0].tolist() == pytest.approx(expected, abs=0.012)


def misleading():
    """Features by split: of three layers the second carries the classes in training, and the third in the test."""
    train = layers_of(400, 0, (1.0, 1.0, 1.0))
    test = layers_of(400, 1, (1.0, 1.0, 1.0))
    noise = torch.randn(3, 400, 8, generator=torch.Generator().manual_seed(2))
    rows = torch.stack([noise[0], train.features[1], train.features[2] + 3e4 * noise[2]])
    others = torch.stack([noise[1], test.features[1] + 3e4 * noise[1], test.features[2]])
    return {"train": train._replace(features=rows), "test": test._replace(features=others)}


def test_the_best_layer_is_chosen_on_held_out_training_samples():
    split = misleading()
    assert choose(split["train"], CPU) == ([0, 0, 0], 1)
    # What has been learned by heart does not choose: a number for each sample is right on those trained on alone.
    labels, noise = torch.arange(40) % 2, torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    useful = 0.1 * noise + 2 * torch.eye(40)[labels]
    both = LayerFeatures(torch.stack([torch.eye(40), useful]), labels, torch.zeros(2))
    assert probe_accuracies(both, both, CPU)[0, 0] == 1
    assert choose(both, CPU).layer == 1


def test_each_layer_takes_the_rate_that_held_out_training_samples_choose():
    train, test = (layers_of(count, seed, (3.0, 1.0)) for count, seed in ((500, 0), (1000, 1)))
    rates = (1e-6, 1e-2, 1e3)
    side_by_side = probe_accuracies(train, test, CPU, lrs=rates)
    for rate, accuracies in zip(rates, side_by_side, strict=True):
        torch.testing.assert_close(probe_accuracies(train, test, CPU, lrs=[rate])[0], accuracies)
    assert (side_by_side[1] > side_by_side[0] + 0.01).all()
    assert (side_by_side[1] > side_by_side[2] + 0.02).all()
    assert choose(train, CPU, lrs=rates) == ([1, 1], 1)


@pytest.fixture
def split(monkeypatch):
    """`misleading` in place of the features of an encoder of two blocks."""
    parts = {name: part._replace(normed=part.features[1]) for name, part in misleading().items()}

    def extracted(compute, loader, device, progress=None, file=None):
        part = parts[loader]
        stream, similarity = part.features.transpose(0, 1), torch.zeros(400, 3)
        return {"stream": stream, "label": part.labels, "similarity": similarity, "normed": part.normed}

    monkeypatch.setattr(probes, "extract", extracted)
    monkeypatch.setattr("bamboo.finetune.features.extract", extracted)
    for module in (probes, probing):
        monkeypatch.setattr(module, "layer_features", lambda model, scale: None)
    return parts


def test_the_command_and_the_studies_report_the_layer_that_training_images_choose(split, monkeypatch, capsys, tmp_path):
    accuracies = probe_accuracies(split["train"], split["test"], CPU, epochs=20)[0]
    assert accuracies.argmax() != 1
    data = SimpleNamespace(probe_loaders=lambda samples, shared=False: ("train", "test"), num_classes=5)
    encoder = SimpleNamespace(blocks=[None, None])
    monkeypatch.setattr(commands, "_open", lambda *_: commands.Frozen(encoder, None, CPU, "auto"))
    monkeypatch.setattr(commands, "_data", lambda *_: data)
    commands.probe("encoder", data="digits", out=tmp_path, epochs=20)
    assert f"best at layer 1 of 2 on held-out training images, where {accuracies[1]:.2%}" in capsys.readouterr().out
    opened = SimpleNamespace(model=torch.nn.Identity())
    monkeypatch.setattr(probes, "open_model", lambda source: opened)
    monkeypatch.setattr(probes, "pixel_scale", lambda source: torch.nn.Identity())
    numbers, by_layer = probes.probe(tmp_path, data, Evaluation(probe_epochs=20), 4, 0, CPU)
    assert numbers["linear_probe_layer"] == 1
    assert numbers["linear_probe"] == accuracies[1]
    assert numbers["linear_probe_last"] == accuracies[2]
    assert by_layer["linear_probe"] == accuracies.tolist()
    matrix = project(torch.eye(8), 4)
    assert by_layer["linear_probe_projected"] == narrow_accuracies(split, matrix).tolist()
    train, test = ((part.normed @ matrix).numpy() for part in split.values())
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda distances: np.exp(-distances / 0.07))
    expected = peer.fit(train, split["train"].labels).score(test, split["test"].labels)
    assert numbers["nearest_neighbours_projected"] == pytest.approx(expected)
    assert numbers["nearest_neighbours_projected"] != numbers["nearest_neighbours"]
    same, alike = probes.probe(tmp_path, data, Evaluation(probe_epochs=20), 8, 0, CPU)
    assert same["nearest_neighbours_projected"] == numbers["nearest_neighbours"]
    assert alike["linear_probe_projected"] == by_layer["linear_probe"]


def narrow_accuracies(split, matrix):
    """Of linear probes on features that a matrix projects."""
    return probe_accuracies(*(p._replace(features=p.features @ matrix) for p in split.values()), CPU, epochs=20)[0]


def test_a_projection_is_scikit_learns_of_the_same_matrix_which_the_widths_alone_decide():
    features = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    peer = GaussianRandomProjection(16, random_state=0).fit(features.numpy())
    ours = project(torch.eye(64), 16).T.numpy()
    assert ours.shape == peer.components_.shape
    assert ours.std() == pytest.approx(peer.components_.std(), rel=0.05)
    peer.components_ = ours
    np.testing.assert_allclose(project(features, 16), peer.transform(features.numpy()), atol=1e-5)
    torch.manual_seed(1)
    assert torch.equal(project(torch.eye(64), 16), torch.from_numpy(ours.T))
    assert not torch.equal(project(torch.eye(64), 16)[:32], project(torch.eye(32), 16))
    assert project(features, 64) is project(features, 100) is features
