"""Search which widths should grow, and how far: a supernet trained path by path, then evolution.

    task = SinglePathTask(wide, criterion)      # each step trains one uniformly sampled subnet
    found = search(wide, "subnet", images=images, constraint="3.0x", trials=1000)
    netaugfx.widen(model, max_config=found.best_config)

Source: Z. Guo, X. Zhang, H. Mu, W. Heng, Z. Liu, Y. Wei, J. Sun, "Single Path One-Shot Neural
Architecture Search with Uniform Sampling", ECCV 2020.
"""

from recipes.spos.budget import Budget
from recipes.spos.result import Candidate, Result, read_sizes
from recipes.spos.scores import SCORES, Images, build_score
from recipes.spos.study import search
from recipes.spos.task import SinglePathTask

__all__ = [
    "SCORES", "Budget", "Candidate", "Images", "Result", "SinglePathTask", "build_score", "read_sizes", "search",
]  # fmt: skip
