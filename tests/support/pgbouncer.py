"""What a test needs that goes through pgbouncer."""

import pytest

from reliability.rig.pooler import PROGRAM

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (Debian: apt install pgbouncer)")
