"""CAME beside the published algorithm written out, and its state beside that of other optimizers."""

import copy
import math

import numpy as np
import pytest
import torch
from timm.optim import Adafactor as AdafactorWithMomentum
from transformers import BertConfig, BertForMaskedLM

from bamboo import came
from bamboo.came import CAME
from bamboo.errors import InputError
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder

SHAPES = [(), (1,), (7,), (5, 3), (1, 6), (6, 1), (5, 3), (2, 4, 3), (2, 3, 2, 5), (7,)]


class PublishedCAME:
    """Algorithm 2 of Luo et al. 2023 for one parameter in double precision: row and column sums, no means."""

    def __init__(self, value, lr, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip=1.0, weight_decay=0.0):
        self.value, self.betas, self.eps = value.copy(), betas, eps
        self.lr, self.clip, self.weight_decay = lr, clip, weight_decay
        self.m, self.second = np.zeros_like(value), np.zeros_like(value)
        self.sums = {}
        self.clipped = []

    def factored(self, name, squares, beta):
        approximation = np.empty_like(squares)
        for index in np.ndindex(squares.shape[:-2]):
            matrix = squares[index]
            rows, columns = self.sums.get((name, index), (np.zeros(len(matrix)), np.zeros(matrix.shape[1])))
            rows = beta * rows + (1 - beta) * matrix @ np.ones(matrix.shape[1])
            columns = beta * columns + (1 - beta) * np.ones(len(matrix)) @ matrix
            self.sums[name, index] = rows, columns
            approximation[index] = np.outer(rows, columns) / rows.sum()
        return approximation

    def step(self, gradient):
        beta1, beta2, beta3 = self.betas
        if gradient.ndim > 1:
            v = self.factored("v", gradient**2 + self.eps[0], beta2)
        else:
            v = self.second = beta2 * self.second + (1 - beta2) * (gradient**2 + self.eps[0])
        u = gradient / np.sqrt(v)
        rms = math.sqrt((u**2).sum() / u.size)
        self.clipped.append(rms > self.clip)
        u = u / max(1.0, rms / self.clip)
        self.m = beta1 * self.m + (1 - beta1) * u
        update = self.m
        if gradient.ndim > 1:
            update = self.m / np.sqrt(self.factored("S", (u - self.m) ** 2 + self.eps[1], beta3))
        self.value = self.value - self.lr * self.weight_decay * self.value - self.lr * update


def parameters(shapes=SHAPES, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [(scale * g / (1 + step)).to(p.dtype) for g, p in zip(drawn, params, strict=True)]


def take_steps(optimizer, params, steps, scale=1.0):
    for step in steps:
        for param, gradient in zip(params, gradients(params, step, scale), strict=True):
            param.grad = gradient
        optimizer.step()


def states(optimizer, params):
    return [optimizer.state[param] for param in params]


def assert_same(left, right):
    for mine, yours in zip(left, right, strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=0)


# The gradients shrink, so that with betas that remember little the update is bounded early on and not later.
@pytest.mark.parametrize(
    ("options", "bounded"),
    [
        ({"lr": 0.01}, {True}),
        ({"lr": 0.03, "weight_decay": 0.3}, {True}),
        ({"lr": 0.03, "betas": (0.8, 0.5, 0.7), "weight_decay": 0.1}, {True, False}),
        ({"lr": 0.03, "betas": (0.0, 0.95, 0.99), "clip": 1e9}, {False}),
        ({"lr": 0.03, "eps": (1e-2, 1e-3), "clip": 0.1}, {True}),
    ],
)
def test_steps_are_those_of_the_published_algorithm(options, bounded):
    params = parameters()
    published = [PublishedCAME(param.detach().numpy(), **options) for param in params]
    optimizer = CAME(params, **options)
    for step in range(6):
        take_steps(optimizer, params, [step])
        for param, one, gradient in zip(params, published, gradients(params, step), strict=True):
            one.step(gradient.numpy())
            np.testing.assert_allclose(param.detach().numpy(), one.value, rtol=1e-10, atol=1e-12)
    assert {clipped for one in published for clipped in one.clipped} >= bounded


def test_tiny_and_absent_gradients_are_as_published():
    """Rows of zeros, as of words that a batch lacks, and gradients whose squares single precision cannot hold."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        params = parameters([(6, 4), (5,)], dtype)
        published = [PublishedCAME(param.detach().double().numpy(), 0.01) for param in params]
        optimizer = CAME(params, 0.01)
        for step in range(4):
            for param, gradient in zip(params, gradients(params, step), strict=True):
                param.grad = gradient * (1e-25 if step == 2 else 1.0)
                param.grad[: 3 - step] = 0
            optimizer.step()
            for param, one in zip(params, published, strict=True):
                one.step(param.grad.double().numpy())
                np.testing.assert_allclose(param.detach().double().numpy(), one.value, rtol=tolerance, atol=tolerance)


def test_groups_of_tensors_give_what_single_ones_give(monkeypatch):
    shapes = [(48, 32)] * 5 + [(32,)] * 7 + [(3, 8, 8)] * 3
    together, alone = parameters(shapes, torch.float32), parameters(shapes, torch.float32)
    take_steps(CAME(together, 0.01, weight_decay=0.1), together, range(5))
    with monkeypatch.context() as patch:
        patch.setattr(came, "CPU_GROUP", 1)
        take_steps(CAME(alone, 0.01, weight_decay=0.1), alone, range(5))
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(came, "CPU_GROUP", 2 * 48 * 32)
    assert [len(group) for group in came._alike(together)] == [2, 2, 1, 7, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_resumed_optimizer_goes_on_bit_for_bit(tmp_path, dtype):
    params = parameters(dtype=dtype)
    optimizer = CAME(params, 0.01, weight_decay=0.1)
    take_steps(optimizer, params, range(3))
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed = [torch.nn.Parameter(value) for value in saved["params"]]
    other = CAME(resumed, 1.0, clip=3.0)
    other.load_state_dict(saved["optimizer"])
    for one, two in ((optimizer, params), (other, resumed)):
        take_steps(one, two, range(3, 6))
    assert_same(params, resumed)
    assert_same(states(optimizer, params), states(other, resumed))
    assert other.param_groups[0]["clip"] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision_have_a_state_in_single(dtype):
    """Steps are those of single precision, with parameters rounded after each."""
    params = parameters(dtype=dtype)
    exact = [torch.nn.Parameter(param.detach().float()) for param in params]
    half, single = CAME(params, 0.01), CAME(exact, 0.01)
    for step in range(20):
        take_steps(half, params, [step])
        for param, twin in zip(params, exact, strict=True):
            twin.grad = param.grad.float()
        single.step()
        for param, twin in zip(params, exact, strict=True):
            twin.data = twin.to(dtype).float()
            torch.testing.assert_close(param.float(), twin.detach(), rtol=1e-2, atol=1e-2)
    for mine, yours in zip(states(half, params), states(single, exact), strict=True):
        assert {value.dtype for value in mine.values()} == {torch.float32}
        torch.testing.assert_close(mine, yours)


def test_a_rate_set_before_every_step_and_absent_gradients_are_followed():
    params = parameters([(4, 3), (4, 3), (5,)])
    optimizer = CAME([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.5}], 1.0)
    published = [PublishedCAME(p.detach().numpy(), 1.0, weight_decay=d) for p, d in zip(params, (0, 0.5, 0.5))]  # noqa: B905
    for step in range(6):
        drawn = gradients(params, step)
        for index, (param, one) in enumerate(zip(params, published, strict=True)):
            optimizer.param_groups[min(index, 1)]["lr"] = one.lr = 0.01 * (step + 1)
            param.grad = None
            if (step + index) % 3:
                param.grad = drawn[index]
                one.step(drawn[index].numpy())
        optimizer.step()
        for param, one in zip(params, published, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), one.value, rtol=1e-10, atol=1e-12)


def test_gradients_that_are_not_contiguous_and_empty_tensors_are_taken():
    plain, turned, empty = *parameters([(6, 4)] * 2), torch.nn.Parameter(torch.empty(0, 3))
    turned.data.copy_(plain.data)
    plain.grad = gradients([plain], 0)[0]
    turned.grad = plain.grad.t().contiguous().t()
    before, empty.grad = turned.grad.clone(), torch.empty(0, 3)
    assert not turned.grad.is_contiguous()
    CAME([plain, turned, empty], 0.1).step()
    assert torch.equal(plain, turned)
    assert torch.equal(turned.grad, before)


def test_the_closure_is_called_with_gradients():
    param = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = CAME([param], 0.1)

    def closure():
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert (param < 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "CAME: lr must be 0 or more: -1.0"),
        ({"betas": (0.9, 0.999)}, "CAME: betas must be three numbers from 0 to below 1: (0.9, 0.999)"),
        ({"betas": (0.9, 0.999, 1.0)}, "CAME: betas must be three numbers from 0 to below 1: (0.9, 0.999, 1.0)"),
        ({"eps": (1e-30, -1.0)}, "CAME: eps must be two numbers, 0 or more: (1e-30, -1.0)"),
        ({"clip": 0.0}, "CAME: clip must be above 0: 0.0"),
        ({"weight_decay": math.nan}, "CAME: weight_decay must be 0 or more: nan"),
    ],
)
def test_an_option_out_of_its_range_is_one_line(options, message):
    for given in ([{"params": parameters([(2,)]), **options}], parameters([(2,)])):
        with pytest.raises(InputError) as error:
            CAME(given, **({} if isinstance(given[0], dict) else options))
        assert str(error.value) == message


def test_sparse_gradients_are_refused():
    words = torch.nn.Embedding(10, 4, sparse=True)
    words(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match="CAME takes no sparse or complex gradients"):
        CAME(words.parameters()).step()


def state_bytes(optimizer_class, params, **options):
    """What the state takes, by a step; on the meta device it has sizes alone."""
    optimizer = optimizer_class(params, 1e-3, **options)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def vision_parameters(shape):
    return [*build_encoder(find_shape(shape), Patches.of(224, 16)).parameters()]


def language_parameters(**options):
    return [*BertForMaskedLM(BertConfig(**options)).parameters()]


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [("bamboo-base", None), ("bamboo-base", 30522), ("bert-base", 30522)],
)
def test_the_state_is_half_of_adamws_and_that_of_adafactor_with_momentum(model, vocabulary):
    sizes = {"num_hidden_layers": 48, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    with torch.device("meta"):
        if vocabulary is None:
            params = vision_parameters(model)
        else:
            params = language_parameters(vocab_size=vocabulary, **(sizes if model == "bamboo-base" else {}))
    params = [param for param in params if param.requires_grad]
    ours, adamw = state_bytes(CAME, params), state_bytes(torch.optim.AdamW, params, foreach=False)
    # By hand: a full average, and for a matrix two pairs of rows and columns, for a vector a full second moment.
    matrices = [param for param in params if param.ndim > 1]
    vectors = sum(param.numel() for param in params if param.ndim < 2)
    sides = sum(param.numel() // param.shape[-1] + param.numel() // param.shape[-2] for param in matrices)
    everything = sum(param.numel() for param in params)
    assert ours == 4 * (everything + vectors + 2 * sides)
    assert 8 * everything <= adamw <= 8 * everything + 8 * len(params)
    plain = 4 * (vectors + sides)  # Adafactor without momentum, which is what torch has
    print(f"{model}, {vocabulary}: CAME {ours / 1e6:.1f} MB, AdamW {adamw / 1e6:.1f}, Adafactor {plain / 1e6:.1f}")
    assert 0.5 < ours / adamw < 0.51
    assert ours / (plain + 4 * everything) < 1.01


def test_states_that_are_stepped_have_these_sizes():
    """On small models with memory: beside torch's AdamW and Adafactor, and timm's Adafactor with momentum."""
    small = language_parameters(
        vocab_size=1000, num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512
    )
    everything = sum(param.numel() for param in small)
    ours, adamw = state_bytes(CAME, small), state_bytes(torch.optim.AdamW, small)
    plain = state_bytes(torch.optim.Adafactor, small)
    momentum = state_bytes(AdafactorWithMomentum, small, betas=(0.9, 0.999))
    assert ours / adamw == pytest.approx(0.5, abs=0.02)
    assert plain < 0.05 * adamw
    assert momentum == pytest.approx(plain + 4 * everything, rel=0.01)
    assert ours / momentum == pytest.approx(1, abs=0.02)


def test_it_trains_a_network_on_digits():
    from sklearn.datasets import load_digits

    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images, losses = images.float() / 16, {}
    for name, build in {
        "came": lambda params: CAME(params, 2e-3, betas=(0.9, 0.99, 0.999)),
        "adamw": lambda params: torch.optim.AdamW(params, 4e-3, betas=(0.9, 0.99)),
    }.items():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
        optimizer = build(network.parameters())
        for step in range(150):
            rows = torch.arange(step * 128, step * 128 + 128) % 1400
            loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = torch.nn.functional.cross_entropy(network(images[1400:]), labels[1400:]).item()
    print(losses)
    assert losses["came"] < 0.5
    assert losses["came"] < 1.5 * losses["adamw"]


def test_a_copied_optimizer_is_independent():
    params = parameters()
    optimizer = CAME(params, 0.01)
    take_steps(optimizer, params, range(2))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    twin.step()
    assert_same(before.values(), optimizer.state_dict()["state"].values())
