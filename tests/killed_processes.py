"""What a process does that is killed from outside; imported by that process, and so without heavy imports."""

import os
import signal
from pathlib import Path


def killed(path, times):
    """Leave a letter in a file at every try; the first tries, as many as `times`, end by a signal."""
    with open(path, "a") as file:
        file.write("x")
    tries = len(Path(path).read_text())
    if tries <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"tries: {tries}"
