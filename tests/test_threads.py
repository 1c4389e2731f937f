"""Loops on several threads: every part once, whoever runs it and whatever goes wrong."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saelearn.train.fast import threads
from saelearn.train.fast.threads import spread

ENOUGH = 1e9


@pytest.fixture(params=["PyTorch's", "our own"], autouse=True)
def two_threads(request, monkeypatch):
    monkeypatch.setattr(threads, "_forked", request.param == "our own")
    threads._openmp.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    threads._openmp.cache_clear()


def parts(n: int) -> list[tuple[int, int]]:
    found = []
    spread(lambda low, high: found.append((low, high)), n, ENOUGH)
    return sorted(found)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 1_000])
def test_every_place_is_had_once(n):
    found = parts(n)
    assert [low for low, _ in found] == [0, *(high for _, high in found[:-1])]
    assert found[-1][1] == n and len(found) == min(n, 2 * threads.TURNS)


def both_work() -> bool:
    meet, found = threading.Barrier(2, timeout=20), []
    spread(lambda low, high: (meet.wait(), found.append((low, high))), 4, ENOUGH)
    return sorted(found) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_two_threads_work_at_the_same_time():
    assert both_work()


def test_what_is_too_little_stays_in_one_thread():
    names = []
    spread(lambda *_: names.append(threading.get_ident()), 1_000, 10)
    assert names == [threading.get_ident()]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_in_any_thread_is_raised(error):
    def fails(low: int, high: int) -> None:
        if high == 6:
            raise error("the last part")

    with pytest.raises(error, match="the last part"):
        spread(fails, 6, ENOUGH)
    assert both_work()


def test_several_callers_do_not_disturb_each_other():
    def one(_: int) -> bool:
        torch.set_num_threads(2)  # it is each thread's own
        return all(len(parts(60)) == 6 and parts(7)[-1] == (5, 7) for _ in range(50))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(one, range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_has_threads_of_its_own():
    """As a worker that loads data has: it would wait for those of its parent for ever."""
    assert both_work()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if both_work() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_left_undone_where_fewer_threads_come_than_were_asked_for():
    code = (
        "import torch; from saelearn.train.fast.threads import spread; torch.set_num_threads(8); "
        "found = []; spread(lambda *ends: found.append(ends), 100, 1e9); "
        "assert sum(high - low for low, high in found) == 100, found"
    )
    limited = os.environ | {"OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", code], env=limited, check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loops have a pool")
def test_pytorchs_own_threads_are_found(request):
    if "our own" not in request.node.name:
        assert threads._openmp() is not None
