"""One probe among many that nobody hits: ``among.py PID ADDRESS GLOB``.

It answers "arm", which arms all functions of the glob, with "armed SITES", and "release" with "released 0"; the probe
at ADDRESS stands all the time. When its input ends it prints that one's hits.
"""

from __future__ import annotations

import sys
from typing import Any

import ubpx


def main(pid: int, address: int, glob: str) -> None:
    """Raises RuntimeError if somebody has called what nobody calls."""
    with ubpx.attach(pid) as target:
        client = target.client("bench")
        lease = client.probe(address, lambda _: None)
        group: Any = ()
        for line in sys.stdin:
            if line.strip() == "arm":
                group = client.probe_many(glob, lambda _: None)
                print("armed", len(group), flush=True)
                continue
            if any(each.hits for each in group):
                raise RuntimeError("somebody has called what nobody calls")
            group.release()
            group = ()
            print("released", len(group), flush=True)
        print(lease.hits)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2], 0), sys.argv[3])
