"""What a reader turns and presses in a lesson.

A widget shows; what it shows is computed in lower layers. Long work runs in a thread, so that the
notebook stays alive, and what goes wrong there is shown, not lost.
"""

from saelearn.widgets.l1_dial import L1Dial
from saelearn.widgets.steering_console import SteeringConsole
from saelearn.widgets.toy_dial import ToyDial

__all__ = ["L1Dial", "SteeringConsole", "ToyDial"]
