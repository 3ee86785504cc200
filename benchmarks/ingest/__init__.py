"""The ingest benchmark: images into a training loop, from files and buckets."""
