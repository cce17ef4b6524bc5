"""Progress bars: tqdm's, but in a notebook on stdout in one line that goes when it is done, and without nested ones.

There tqdm writes to stderr, which notebooks show as a red box, and each nested bar adds its lines."""

import sys

from tqdm.std import tqdm as terminal_tqdm


class tqdm(terminal_tqdm):
    """A progress bar for a terminal, a log or a notebook."""

    def __init__(self, *args, **options):
        ipython = sys.modules.get("IPython")
        shell = ipython and ipython.get_ipython()
        # the number of the cell that runs; None outside notebooks
        self.cell = shell.execution_count if shell and hasattr(shell, "kernel") else None
        if self.cell is not None:
            # bars of earlier cells that were interrupted may live on
            others = [bar for bar in list(self._instances) if bar is not self]
            is_nested = any(getattr(bar, "cell", None) == self.cell for bar in others)
            options = {"file": sys.stdout, "leave": False, "mininterval": 0.5} | options
            options["disable"] = is_nested or options.get("disable", False)
        super().__init__(*args, **options)
