"""Floor 1: what runs and ends. Data, training and export; never imports `serve_app`."""
