import pytest
import torch

from coterie.kernels.pages import PAGE, Pages


def pages_of(dtype: torch.dtype) -> Pages:
    pages = Pages(2, 3, 4, dtype, torch.device("cpu"))
    pages.grow(2)
    return pages


def test_the_worked_example_of_eight_bits() -> None:
    pages = Pages(1, 1, 3, torch.int8, torch.device("cpu"))
    pages.grow(1)
    x = torch.tensor([[[1.0, -2.0, 0.5]]])
    pages.write(0, torch.tensor([5]), x, 2 * x)
    assert pages.k[0][0, 5, 0].tolist() == pages.v[0][0, 5, 0].tolist() == [64, -127, 32]
    k, v = pages.read(0, torch.tensor([5]))
    torch.testing.assert_close(k[0, 0], torch.tensor([1.008, -2, 0.504]), atol=1e-3, rtol=0)
    assert torch.equal(v, 2 * k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_growing_and_copying_keep_what_is_there(dtype: torch.dtype) -> None:
    pages, rows = pages_of(dtype), torch.tensor([3, PAGE + 1, PAGE + 2])
    k, v = torch.randn(3, 3, 4), torch.randn(3, 3, 4)
    pages.write(1, rows, k, v)
    before = pages.read(1, rows)
    pages.grow(5)
    assert all(map(torch.equal, pages.read(1, rows), before)) and pages.k[0].shape == (5, PAGE, 3, 4)
    pages.copy(1, 4, 2)
    for copied, kept in zip(pages.read(1, slice(4 * PAGE, 4 * PAGE + 3)), before, strict=True):
        assert torch.equal(copied[1], kept[1]) and not copied[2].any()


def test_addresses_are_those_of_the_tensors() -> None:
    plain, small = pages_of(torch.float32), pages_of(torch.int8)
    assert plain.addresses == [plain.k[0].data_ptr(), plain.v[0].data_ptr(), 0, 0, plain.k[1].data_ptr(),
                               plain.v[1].data_ptr(), 0, 0]  # fmt: skip
    assert small.addresses[6:] == [small.k_scales[1].data_ptr(), small.v_scales[1].data_ptr()]


def test_a_slice_is_a_view_where_nothing_has_scales() -> None:
    pages = pages_of(torch.float32)
    k, _ = pages.read(0, slice(10, 80))
    assert k.shape == (70, 3, 4) and k.data_ptr() == pages.k[0][0, 10].data_ptr()
