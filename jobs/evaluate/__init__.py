"""What a bundle is worth: figures with intervals, on images of any source."""
