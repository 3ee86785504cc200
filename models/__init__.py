"""Floor 0: what a trained model is. Bundles, preprocessing, labels and engines; no Ray, no HTTP."""
