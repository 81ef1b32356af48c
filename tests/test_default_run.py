"""The default run learns the embedded data set: a network, not a threshold, is what finds the tumour."""

import pytest
from test_run import do


@pytest.mark.slow
def test_the_default_run_scores_over_three_quarters_on_patients_it_has_not_seen(tmp_path):
    outcome = do(tmp_path, tiny=False)
    assert outcome.status == "finished", outcome.error
    assert outcome.metrics["test/dice"] > 0.75
    assert outcome.metrics["test/missed"] == 0
