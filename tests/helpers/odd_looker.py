"""What a vendor's library may do when it is asked for its devices: `python -m tests.helpers.odd_looker KIND`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1] == "hangs":
        time.sleep(60.0)
    if sys.argv[1] == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    Path("library.log").write_text("a library's own log\n")
    print("a library's own chatter")
    print('{"devices": [{"kind": "odd", "source": "odd:1", "name": "Odd One"}], "note": ""}')
