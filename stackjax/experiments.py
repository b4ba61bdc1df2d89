"""The laboratory, as a package of stackjax: `stackjax.experiments.depth_sweep` is `experiments.depth_sweep`.

So it has a name that no other project has. This file stands for it in a checkout; where stackjax is installed, the
folder `experiments` of the repository stands in its place.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "experiments")]
