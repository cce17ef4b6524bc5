"""`python -m tts_kit` is `tts-kit`."""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - without installing it, any Python can start it
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"tts_kit needs Python 3.11 or newer; {sys.executable} is {version}. Use a newer one, such as that of your "
                 "environment (.venv/bin/python -m tts_kit).")
    try:
        from tts_kit.cli import main

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
