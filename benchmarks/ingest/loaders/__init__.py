"""Who reads images: each module opens one library, in the environment that it is installed in."""
