"""Labelled images by URI: listed, checked, split by content, streamed to training by Ray tasks."""
