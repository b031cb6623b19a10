"""What stands on joblib or takes an Executor: scikit-learn and Dask (of the bench extra)."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import mpgort

joblib = pytest.importorskip("joblib")
import mpgort.joblib  # noqa: E402

pytestmark = pytest.mark.usefixtures("joblib_ends")

# ---- scikit-learn --------------------------------------------------------------------------------


def test_a_grid_search_finds_what_it_finds_alone() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = make_classification(500, 20, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1]}, cv=3)
    alone = search.fit(x, y).cv_results_["mean_test_score"]
    with joblib.parallel_config("mpgort", n_jobs=2):
        search.n_jobs = 2
        assert np.array_equal(search.fit(x, y).cv_results_["mean_test_score"], alone)


def test_estimators_that_are_parallel_themselves_nest() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    x, y = make_classification(200, 20, random_state=0)
    forest = RandomForestClassifier(4, n_jobs=2, random_state=0)
    alone = cross_val_score(forest, x, y, cv=3)
    with joblib.parallel_config("mpgort", n_jobs=2, inner_max_num_threads=1):
        assert np.array_equal(cross_val_score(forest, x, y, cv=3, n_jobs=2), alone)


# ---- Dask ----------------------------------------------------------------------------------------


def test_dask_computes_on_an_executor() -> None:
    dask = pytest.importorskip("dask")
    double, total = dask.delayed(lambda x: 2 * x), dask.delayed(sum)
    with mpgort.Executor(2) as ex:
        assert dask.compute(total([double(i) for i in range(50)]), scheduler=ex) == (2450,)


def test_arrays_of_dask_pass_from_task_to_task() -> None:
    dask = pytest.importorskip("dask")
    array = pytest.importorskip("dask.array")
    with mpgort.Executor(2) as ex, dask.config.set(scheduler=ex):
        a = array.ones((1000, 1000), chunks=(250, 250))
        assert float((a + a.T).sum().compute()) == 2e6


def test_what_a_task_of_dask_raises_or_dies_of_comes_out() -> None:
    dask = pytest.importorskip("dask")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with mpgort.Executor(2) as ex:
        bad: Any = dask.delayed(lambda: 1 / 0)()
        with pytest.raises(ZeroDivisionError):
            dask.compute(bad, scheduler=ex)
        with pytest.raises(mpgort.MDied):
            dask.compute(dask.delayed(die)(), scheduler=ex)
        assert dask.compute(dask.delayed(pow)(2, 3), scheduler=ex) == (8,)
