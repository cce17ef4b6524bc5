"""`python -m tts_kit` is `tts-kit`."""

import sys

from tts_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
