"""Training: from labelled images to a published bundle. `python -m jobs.train CONFIG [key=value
...]`.
"""
