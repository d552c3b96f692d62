"""Weight fusion: what is interpolated, what is kept, and which share is chosen."""

from __future__ import annotations

import pytest
import torch

from cilseg.bundle import Architecture, Preprocessing
from cilseg.errors import InputError
from cilseg.models.segmenter import SegmentationModel
from cilseg.update.fuse import ShareTried, choose_share, fused_state

ARCHITECTURE = Architecture(
    backbone="test_resnet", output_stride=8, head_channels=4, head_dilations=(1,), classes_per_step=(1, 2)
)
PREPROCESSING = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def pair() -> tuple[SegmentationModel, SegmentationModel]:
    torch.manual_seed(0)
    parent = SegmentationModel(ARCHITECTURE, PREPROCESSING)
    candidate = parent.extended(2)
    with torch.no_grad():
        for value in candidate.state_dict().values():
            value.add_(torch.ones_like(value))
    return parent.eval(), candidate.eval()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_shared_tensors_lie_between_and_the_new_classifier_is_kept(
    pair: tuple[SegmentationModel, SegmentationModel], share: float
) -> None:
    before, after = (model.state_dict() for model in pair)
    fused = fused_state(before, after, share=share)
    assert list(fused) == list(after)
    for name, value in fused.items():
        if name not in before:
            assert name.startswith("classifier.steps.2.")
            assert torch.equal(value, after[name])
        elif value.is_floating_point():
            torch.testing.assert_close(value, before[name] + share, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, after[name])
    assert set(fused) - set(before)


def test_the_fused_model_answers_like_the_parent_at_share_zero(
    pair: tuple[SegmentationModel, SegmentationModel],
) -> None:
    parent, candidate = pair
    twin = candidate.extended(0).eval()
    twin.load_state_dict(fused_state(parent.state_dict(), candidate.state_dict(), share=0.0))
    image = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        torch.testing.assert_close(twin(image)[:, : parent.n_classes], parent(image), rtol=1e-4, atol=1e-4)


def test_refusals(pair: tuple[SegmentationModel, SegmentationModel]) -> None:
    before, after = (model.state_dict() for model in pair)
    with pytest.raises(InputError, match=r"between 0 and 1, got 1.2"):
        fused_state(before, after, share=1.2)
    with pytest.raises(InputError, match="Fuse a candidate with the parent it was trained from"):
        fused_state(after, before, share=0.5)


def test_choice() -> None:
    def tried(*changes: float) -> list[ShareTried]:
        return [ShareTried(s, c, None) for s, c in zip((0.8, 0.6, 0.4, 0.2), changes, strict=True)]

    assert choose_share(tried(-5, -1, -0.5, 0), tolerance_points=3.0).share == 0.6  # type: ignore[union-attr]
    assert choose_share(tried(-9, -5, -2.5, -2), tolerance_points=3.0).share == 0.2  # type: ignore[union-attr]
    assert choose_share(tried(-9, -8, -7, -6), tolerance_points=3.0) is None
