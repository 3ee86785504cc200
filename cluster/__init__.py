"""Where Sightline runs: connecting to Ray, files for clusters. Knows neither jobs nor serving."""
