"""`python -m saelearn.cli`, which `torchrun -m` needs."""

import sys

from saelearn.cli import main

sys.exit(main())
