import pytest
import torch

from coterie.engine.pages import PagePool
from coterie.engine.prefix import PrefixTree
from coterie.errors import ResourceError
from coterie.kernels.pages import Pages


def pool_of(n_pages: int | None) -> tuple[PagePool, PrefixTree, Pages]:
    store, tree = Pages(1, 1, 2, torch.float32, torch.device("cpu")), PrefixTree()
    return PagePool(store, tree, n_pages), tree, store


def test_the_lowest_free_page_is_taken() -> None:
    pool, _, store = pool_of(3)
    assert [pool.take() for _ in range(3)] == [0, 1, 2] and pool.n_free == 0 and store.n_pages == 3
    with pytest.raises(ResourceError, match="all 3 pages of 64 tokens are in use"):
        pool.take()
    pool.release(1)
    assert pool.take() == 1


def test_a_page_is_free_when_nobody_holds_it_any_more() -> None:
    pool, _, _ = pool_of(1)
    pool.hold(page := pool.take())
    pool.release(page)
    assert pool.n_free == 0
    pool.release(page)
    assert pool.n_free == 1


def test_without_a_number_the_store_doubles() -> None:
    pool, _, store = pool_of(None)
    for n in (1, 2, 4, 4, 8):
        pool.take()
        assert pool.n_pages == store.n_pages == n
    pool.reserve(3)
    assert pool.n_pages == 8
    pool.reserve(20)
    assert pool.n_pages == 25 and pool.n_free == 20


def test_remembered_pages_go_in_the_order_of_their_release() -> None:
    pool, tree, _ = pool_of(3)
    for page in (pool.take(), pool.take(), pool.take()):
        tree.insert([page], [page])
    for page in (1, 0, 2):
        pool.release(page)
    pool.hold(0)
    pool.release(0)
    assert pool.n_free == 3
    assert [pool.take() for _ in range(3)] == [1, 2, 0] and tree.n_known(0) == 0


def test_a_growing_store_takes_a_remembered_page_before_it_grows() -> None:
    pool, tree, _ = pool_of(None)
    tree.insert([5], [pool.take()])
    pool.release(0)
    assert pool.take() == 0 and pool.n_pages == 1


def test_a_page_is_copied_only_where_somebody_counts_on_it() -> None:
    pool, tree, store = pool_of(4)
    page = pool.take()
    store.k[0][page] = 7
    assert pool.own(page, 3) == page
    tree.insert([1, 2, 3], [page])
    assert pool.own(page, 3) == page, "what follows is nobody's"
    copy = pool.own(page, 2)
    assert copy != page
    assert store.k[0][copy, :, 0, 0].tolist() == [7, 7] + [0] * 62 and pool.n_free == 3
    pool.hold(copy)
    assert pool.own(copy, 2) not in (page, copy)
