"""A forest of scikit-learn's on its wines: an estimator that is fitted at one go, without epochs.

cd examples/sklearn_estimator
SEGSWEEP_ALLOW='wine.*' python -m segsweep -m --config-dir conf task=wine task.depth=1,4 task.trees=20,100 seed=0,1,2
"""

import hashlib
from typing import Annotated

import joblib
import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss

from segsweep.task import Data, Metric, Range, Result, Run, Spec


class Wine:
    spec = Spec(
        metrics={
            "loss": Metric(title="Log loss", direction="min", format=".3f"),
            "accuracy": Metric(title="Accuracy", direction="max", format=".3f", bounds=(0, 1), by_unit=True),
        },
        select="val/loss",
        unit="wine",
        sample="wine",
        epochs=False,
    )

    def __init__(
        self,
        *,
        trees: Annotated[int, Range(least=1)] = 50,
        depth: Annotated[int | None, Range(least=1)] = None,
    ) -> None:
        self.trees, self.depth = trees, depth
        self.x, self.y = load_wine(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(self.y))
        self.parts = dict(zip(("train", "val", "test"), np.split(order, [88, 118]), strict=True))

    def data(self) -> Data:
        digest = hashlib.sha256(self.x.tobytes() + self.y.tobytes()).hexdigest()
        return Data(digest=digest, split="shuffled, 0", parts={part: len(at) for part, at in self.parts.items()})

    def train(self, run: Run) -> Result:
        forest = RandomForestClassifier(n_estimators=self.trees, max_depth=self.depth, random_state=run.seed)
        forest.fit(self.x[self.parts["train"]], self.y[self.parts["train"]])
        joblib.dump(forest, run.folder / "forest.joblib")  # stays with the run
        metrics = {}
        for part, at in self.parts.items():
            metrics[f"{part}/loss"] = log_loss(self.y[at], forest.predict_proba(self.x[at]), labels=[0, 1, 2])
            metrics[f"{part}/accuracy"] = forest.score(self.x[at], self.y[at])
        test = self.parts["test"]
        right = forest.predict(self.x[test]) == self.y[test]
        return Result(metrics, {str(at): {"accuracy": float(r)} for at, r in zip(test, right, strict=True)})
