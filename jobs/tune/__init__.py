"""Finding the settings of a training: a learning-rate range test, and sweeps with Ray Tune."""
