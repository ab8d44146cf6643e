"""The marker of our hook implementation, in a file of its own so that no module here imports its package."""

from typing import Final

import pluggy

hookimpl: Final = pluggy.HookimplMarker("ubpx")
