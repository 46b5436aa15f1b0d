"""Recipes on top of netaugfx: training tasks, data, the training loop, the command line."""
