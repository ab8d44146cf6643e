"""Stops all threads of a process and lets them go: ``holding.py PID ROUNDS`` prints what quiesce.c does.

"STOPPED WENT" in nanoseconds for each round, both from its beginning.
"""

import sys
import time

import ubpx

REST_S = 0.05


def main(pid: int, count: int) -> None:
    """By holds of one client."""
    with ubpx.attach(pid) as target:
        client = target.client("bench")
        for _ in range(count):
            began = time.perf_counter_ns()
            hold = client.hold()
            stopped = time.perf_counter_ns()
            hold.release()
            print(stopped - began, time.perf_counter_ns() - began, flush=True)
            time.sleep(REST_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
