"""Settings for all tests; the kernels that nbval starts inherit them."""

import os

# a progress bar would be an output of its cell
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
