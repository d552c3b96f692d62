"""What a training step sees: crops with masks, with image tags, or with both; never more than it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cilseg.data.transforms import TrainTransform
from cilseg.errors import CilsegError, InputError
from cilseg_serve.images import read_mask

ImageReader = Callable[[int], npt.NDArray[np.uint8]]
BatchPlan = Callable[[int, int], list[Sequence[int]]]
"""(epoch, batch size) -> the indices of every batch."""
_CACHE_BYTES = 2 * 1024**3


class Batch(TypedDict, total=False):
    """What a method gets; all but the image only where the training set has it.

    ``image`` (B, 3, H, W) uint8 RGB; ``mask`` (B, H, W) int64 channel ids; ``tags`` (B, n_fg) int8 states;
    ``saliency`` (B, H, W) uint8, 255 is certainly an object.
    """

    image: Tensor
    mask: Tensor
    tags: Tensor
    saliency: Tensor


def as_batch(image: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return an image or map (H, W, C) as a batch of one on ``device``, (1, C, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device)


@dataclass
class TrainingSet:
    """Images with channel masks, with tag states, or both; decoded files are kept in memory up to 2 GiB.

    Args:
        read_image: index -> ``(H, W, 3)`` uint8.
        read_mask: index -> ``(H, W)`` uint8 channel ids with 255 void; None for tag supervision, so that a tag
            method cannot see masks at all.
        tags: ``(N, n_fg)`` int8: 1 present, 0 absent, -1 unknown; None for mask supervision.
        read_saliency: index -> ``(H, W)`` uint8, how much each pixel of the image looks like an object.
        names: file names of the images without their ending, for files made per image.
        plan: which images form the batches of an epoch; None: a permutation, cut into batches.
    """

    size: int
    read_image: ImageReader
    transform: TrainTransform
    seed: int
    read_mask: ImageReader | None = None
    tags: npt.NDArray[np.int8] | None = None
    read_saliency: ImageReader | None = None
    names: Sequence[str] | None = None
    plan: BatchPlan | None = None
    _cache: dict[tuple[str, int], npt.NDArray[np.uint8]] = field(default_factory=dict)
    _cached_bytes: int = 0

    def __post_init__(self) -> None:
        if self.size == 0:
            raise InputError("There is no image to train on. Check the split list or the tag list.")

    def name(self, index: int) -> str:
        """Return a name for files made from image ``index``: its number, and its own name where it is known."""
        return f"{index:05d}" + (f"-{self.names[index]}" if self.names else "")

    def changed(self, **changes: Any) -> TrainingSet:
        """Return a copy with other fields; decoded files are not shared."""
        return replace(self, **changes, _cache={}, _cached_bytes=0)

    def _read(self, kind: str, reader: ImageReader, index: int) -> npt.NDArray[np.uint8]:
        key = (kind, index)
        if key not in self._cache:
            array = reader(index)
            if self._cached_bytes + array.nbytes > _CACHE_BYTES:
                return array
            self._cache[key] = array
            self._cached_bytes += array.nbytes
        return self._cache[key]

    def sample(self, epoch: int, index: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Return the crop of image ``index`` in ``epoch``: the same for every worker count and after a resume.

        ``image`` (S, S, 3), and ``mask`` and ``saliency`` (S, S) where the set has them.
        """
        rng = np.random.Generator(np.random.PCG64([self.seed, 1, epoch, index]))
        image = self._read("image", self.read_image, index)
        readers = {"mask": self.read_mask, "saliency": self.read_saliency}
        planes = {key: self._read(key, reader, index) for key, reader in readers.items() if reader is not None}
        labels = np.stack(list(planes.values()), axis=-1) if planes else None
        crop, cut = self.transform(image, labels, rng)
        sample = {"image": crop}
        if cut is not None:
            sample |= {key: cut[..., k] for k, key in enumerate(planes)}
        return sample

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the permutation of ``epoch``."""
        return np.random.Generator(np.random.PCG64([self.seed, 2, epoch])).permutation(self.size)

    def iterations(self, batch_size: int) -> int:
        """Batches per epoch; the incomplete last one is dropped unless it is the only one."""
        return len(self.plan(0, batch_size)) if self.plan else max(1, self.size // batch_size)

    def batch_indices(self, epoch: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Return the indices of each batch of ``epoch`` for one process; ``batch_size`` counts all processes."""
        if self.plan:
            return [batch[rank::world] for batch in self.plan(epoch, batch_size)]
        order = self.order(epoch)
        count = self.iterations(batch_size)
        return [order[i * batch_size : (i + 1) * batch_size][rank::world].tolist() for i in range(count)]

    def collate(self, epoch: int, indices: Sequence[int]) -> Batch:
        """Build the batch of the given indices."""
        samples = [self.sample(epoch, i) for i in indices]
        batch = Batch(image=torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2))
        if self.read_mask is not None:
            batch["mask"] = torch.from_numpy(np.stack([s["mask"] for s in samples])).long()
        if self.read_saliency is not None:
            batch["saliency"] = torch.from_numpy(np.stack([s["saliency"] for s in samples]))
        if self.tags is not None:
            batch["tags"] = torch.from_numpy(self.tags[list(indices)])
        return batch


# Readers are functions of the module, not closures: worker processes that are spawned get them as pickles.
def read_mask_file(files: Sequence[Path], index: int) -> npt.NDArray[np.uint8]:
    """Read the mask file of image ``index``."""
    return read_mask(files[index])


def read_either(first: ImageReader, second: ImageReader, size: int, index: int) -> npt.NDArray[np.uint8]:
    """Read from the first of two sets, which has ``size`` images, or from the one behind it."""
    return first(index) if index < size else second(index - size)


class _EpochBatches(torch.utils.data.Dataset[Batch | CilsegError]):
    """One epoch as a map-style dataset of whole batches, so that worker processes can build them."""

    def __init__(self, data: TrainingSet, epoch: int, batches: list[Sequence[int]]) -> None:
        self._data, self._epoch, self._batches = data, epoch, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, position: int) -> Batch | CilsegError:
        try:
            return self._data.collate(self._epoch, self._batches[position])
        except CilsegError as error:  # raised in the main process; torch would wrap it in the worker's traceback
            return error


def epoch_batches(
    data: TrainingSet, epoch: int, *, batch_size: int, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yield the batches of ``epoch`` from number ``start`` on."""
    batches = data.batch_indices(epoch, batch_size, rank=rank, world=world)[start:]
    dataset = _EpochBatches(data, epoch, batches)
    loaded: Iterable[Batch | CilsegError] = (dataset[i] for i in range(len(dataset)))
    if workers:
        loaded = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            generator=torch.Generator(),  # its own: the loader must not draw from the random state of the run
        )
    for batch in loaded:
        if isinstance(batch, CilsegError):
            raise batch
        yield batch
