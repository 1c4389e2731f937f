"""saelearn: learn sparse autoencoders for language models, from toy models to steering.

Import the rooms by name (`from saelearn import sae, train`); nothing is imported here, so that
`import saelearn` costs nothing and needs no network, widget or GPU.
"""

__version__ = "0.1.0"
