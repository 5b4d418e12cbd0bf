"""``python -m lit_prune inspect``: what masks leave of a network, layer by layer and as a picture.

A path is resolved to masks, the network that they belong to and an input of it (``subject``); what
they leave is found (``findings``) and printed (``layer_table``); the units and connections of a
small network are laid out (``diagram``) and drawn (``picture``).
"""

from lit_prune.inspect.command import run

__all__ = ["run"]
