"""Reference arrays as tensors, and the comparison of value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@pytest.fixture(scope="session")
def tensors(reference: Callable[[str], dict[str, np.ndarray]]) -> Callable[[str], Tensors]:
    """Loader of reference arrays as tensors in the precision they are stored in."""
    return lambda name: {key: torch.from_numpy(np.asarray(array)) for key, array in reference(name).items()}


@pytest.fixture(scope="session")
def agrees() -> Callable[..., None]:
    """Assert that a value equals a reference: to 1e-9 when stored in float64, to 1e-5 when in float32."""

    def check(got: Tensor, wanted: Tensor, *, tolerance: float | None = None) -> None:
        allowed = tolerance or (1e-9 if wanted.dtype == torch.float64 else 1e-5)
        torch.testing.assert_close(got.detach().double(), wanted.double(), rtol=allowed, atol=allowed)

    return check


@pytest.fixture(scope="session")
def value_and_gradient() -> Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]:
    """Evaluate a function at a tensor; the gradient is that of the sum of its outputs."""

    def evaluate(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.clone().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return evaluate
