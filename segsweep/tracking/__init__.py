"""MLflow: a mirror of the record on disk, and runs found again in it. Nothing depends on it being there."""
