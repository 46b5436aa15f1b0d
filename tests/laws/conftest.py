"""What holds for the tests of the laws alone."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def without_onednn() -> Iterator[None]:
    """Random networks meet a fault of oneDNN, which then crashes or hangs in a plain network's backward pass.

    It writes outside of its memory where a 1x1 convolution with a stride has few input channels that lie last
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    torch.backends.mkldnn.set_flags(False)
    yield
    torch.backends.mkldnn.set_flags(True)
