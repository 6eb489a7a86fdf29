"""`python -m naiad` is the same as `naiad`."""

from naiad.runtime.cli import main

raise SystemExit(main())
