"""Recipes built on netaugfx: training tasks, data, the training loop and the command line `netaugfx`."""
