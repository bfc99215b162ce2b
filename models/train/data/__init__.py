"""Images to train on and to evaluate with, as uint8 pixels."""
