"""Looks at a labelled image set before it is trained on, and reports what would spoil a model."""
