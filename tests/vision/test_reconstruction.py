import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.cli import main
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale, patchify
from bamboo.vision.reconstruction import NORM_PIX_NOTE, RAW_NOTE, note_for, panel, reconstruct
from tests.runs import QUARTER, fit, last


class Oracle(torch.nn.Module):
    """A decoder that knows the answer."""

    all_layers = False

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, states, keep, masked):
        return self.answer.gather(1, masked.unsqueeze(-1).expand(-1, -1, self.answer.shape[-1]))


def byte_images(count=2, channels=3, size=(16, 24)):
    return torch.randint(
        0, 256, (count, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def tiny_mae(**kwargs):
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 32, "heads": 2}
    return build_mae(shape, (16, 24), 4, decoder_shape=shape, **kwargs)


def test_bytes_survive_standardising_and_back():
    images, scale = byte_images(), PixelScale(3)
    assert torch.equal(scale.to_bytes(scale(images)), images)
    expected = (images[0, 0, 0, 0] / 255 - 0.485) / 0.229
    assert scale(images)[0, 0, 0, 0] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_shown_as_the_image_itself(norm_pix):
    mae, scale, images = tiny_mae(norm_pix=norm_pix), PixelScale(3), byte_images()
    mae.decoder = Oracle(mae.target(patchify(scale(images), 4)))
    pictures = reconstruct(mae, scale, images, seed=3)
    assert pictures.shape == (2, 4, 3, 16, 24)
    shown, masked, predicted, pasted = pictures.unbind(1)
    assert torch.equal(shown, images)
    assert (pasted.int() - images.int()).abs().max() <= 1
    visible = (masked == images).all(dim=1)
    assert visible.float().mean() == pytest.approx(0.25, abs=0.05)
    assert ((predicted.int() - images.int()).abs() <= 1).all(dim=1)[~visible].all()


def test_pictures_depend_on_the_seed_alone_and_leave_the_mode():
    mae, scale, images = tiny_mae().train(), PixelScale(3), byte_images()
    assert torch.equal(reconstruct(mae, scale, images, 1), reconstruct(mae, scale, images, 1))
    assert not torch.equal(reconstruct(mae, scale, images, 1), reconstruct(mae, scale, images, 2))
    assert mae.training


def test_a_panel_says_whose_scale_is_shown():
    assert note_for(tiny_mae()) == NORM_PIX_NOTE
    assert note_for(tiny_mae(norm_pix=False)) == RAW_NOTE
    sheet = panel(reconstruct(tiny_mae(), PixelScale(3), byte_images()), NORM_PIX_NOTE)
    assert np.asarray(sheet)[-20:].min() < 128  # the note is written below


def test_the_command_draws_images_of_any_size_and_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.max_steps", "1", *QUARTER) == 0
    Image.new("RGB", (300, 100), "red").save("wide.jpg")
    Image.new("L", (17, 90), 128).save("tall.png")
    assert main(["reconstruct", str(last(tmp_path)), "wide.jpg", "tall.png", "--out", "panels"]) == 0
    assert NORM_PIX_NOTE in capsys.readouterr().out
    for name in ("wide", "tall"):
        assert Image.open(tmp_path / "panels" / f"{name}_reconstruction.png").size[0] > 4 * 128
    assert main(["reconstruct", str(last(tmp_path)), "nowhere.jpg", "--out", "panels"]) == 2
    assert "nowhere.jpg" in capsys.readouterr().err
