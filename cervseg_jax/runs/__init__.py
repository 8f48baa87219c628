"""What a run leaves on disk or in a bucket: folder, log, checkpoints, weights, history."""
