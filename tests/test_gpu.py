"""What a GPU needs, as far as it can be tested without one."""

import pytest
import torch

from files.errors import UserError, is_out_of_memory, short_of_memory


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_way_in_which_torch_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    with pytest.raises(UserError, match="out of memory: use less"), short_of_memory(": use less"):
        raise error


def test_other_errors_of_a_card_are_not_taken_for_a_lack_of_memory():
    for text in ("CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED"):
        assert not is_out_of_memory(RuntimeError(text))
