"""Tests of rendering and of the manifests, without a cluster."""
