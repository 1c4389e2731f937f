"""Where what a test starts keeps its settings: nowhere that a person's own lie."""

from __future__ import annotations

from pathlib import Path


def private_environment(scratch: Path) -> dict[str, str]:
    """Variables that keep Jupyter, IPython and matplotlib within `scratch`."""
    variables = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    variables += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    # matplotlib's list of fonts takes seconds to build: one for all, nothing in it is a setting
    variables += ["MPLCONFIGDIR", "SAELEARN_CACHE"]
    return {name: str(scratch / name.lower()) for name in variables}
