"""Training through Sightline against plain loops and other trainers."""
