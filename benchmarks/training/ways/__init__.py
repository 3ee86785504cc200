"""One module for each way to train; `run(request)` returns the images per second of each epoch."""
