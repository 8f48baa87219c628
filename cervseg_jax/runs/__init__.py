"""Files of a run on disk or in a bucket: folder, log, checkpoints, weights, history."""
