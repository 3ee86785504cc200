"""Engines: what runs the exported graph of a bundle. `base` has the protocol and the table."""
