"""Libraries of the bench extra on mpgort: scikit-learn through joblib, Dask on an Executor.

python -m pytest bench/test_ecosystem.py"""

from typing import Any

import dask
import dask.array
import joblib
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import mpgort
import mpgort.joblib


def test_a_grid_search_of_scikit_learn_finds_what_it_finds_alone() -> None:
    x, y = make_classification(2000, 20, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 0.1, 1, 10]}, cv=3)
    alone = search.fit(x, y).cv_results_["mean_test_score"]
    with joblib.parallel_config("mpgort", n_jobs=2):
        search.n_jobs = 2
        assert np.array_equal(search.fit(x, y).cv_results_["mean_test_score"], alone)
        forest = RandomForestClassifier(20, n_jobs=2, random_state=0).fit(x, y)
        assert forest.score(x, y) > 0.95


@dask.delayed
def double(x: int) -> int:
    return 2 * x


@dask.delayed
def total(xs: list[int]) -> int:
    return sum(xs)


def test_dask_computes_on_an_executor() -> None:
    with mpgort.Executor(2) as ex:
        graph: Any = total([double(i) for i in range(100)])
        assert dask.compute(graph, scheduler=ex) == (9900,)
        a = dask.array.ones((2000, 2000), chunks=(500, 500))
        with dask.config.set(scheduler=ex):
            assert float((a + a.T).sum().compute()) == 8e6
