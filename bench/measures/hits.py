"""What a hit costs: the peers, ubpx beside them, and ubpx under other conditions, all in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence

from harness.figures import Demand, Figure, of_ratio
from harness.peers import Peer, all_peers
from harness.rounds import YARDSTICK, Ratio, Row, Rows, ratio, rounds
from harness.settings import Settings, variant

COUNTING = "ubpx_counts"
FASTER = {
    "gdb_python": 13.0,
    "gdb_condition": 13.0,
    "libdebug_callback": 4.0,
    "python_ptrace": 8.0,
    "lldb_callback": 100.0,
}
"""How many times ubpx must at least be faster."""
SLOW = (*FASTER, "gdbserver_condition")
"""What takes seconds to start, or for its hits."""
QUICK_TIMES = 2
"""So many times as many rounds has what is quick."""
CLIENTS = (100, 1000)
VARIANTS = (
    variant("clients=1", "ubpx, one client that does nothing", calls=10_000),
    variant("clients=2", "ubpx, two clients", calls=10_000),
    variant(f"clients={CLIENTS[0]}", "ubpx, 100 clients", calls=1_000),
    variant(f"clients={CLIENTS[1]}", "ubpx, 1,000 clients", calls=500),
    variant("busy", "ubpx, another Python thread of the host computes", calls=2_000),
    variant("notify", "ubpx, client in another process, notified", calls=10_000, job="remote"),
    variant("sync", "ubpx, client in another process, waited for", calls=5_000, job="remote"),
    variant("asyncio", "ubpx, client in another process, asyncio", calls=5_000, job="remote"),
)
REMOTE = {"notify": Demand(most=1.3), "sync": Demand(most=4), "asyncio": Demand(most=10)}


def measure(settings: Settings, *, peers: Sequence[Peer] | None = None) -> tuple[Rows, list[Figure]]:
    """All rows, and the figures that come of them.

    What is quick has more rounds, with nothing slow between: who else uses the machine changes within seconds. What is
    slow has rounds of its own, with what it is compared with among them.
    """
    ways = {each.name: each for each in (*(all_peers() if peers is None else peers), *VARIANTS)}
    compared_with = [ways[name] for name in (YARDSTICK, COUNTING)]

    def measured(some: Sequence[Peer], count: int, function: str = "bench_lea") -> Rows:
        return rounds(some, count, scale=settings.scale, function=function, telling=settings.telling)

    quick = measured([each for each in ways.values() if each.name not in SLOW], settings.rounds * QUICK_TIMES)
    slow = measured([*compared_with, *(ways[name] for name in SLOW if name in ways)], settings.rounds)
    emulated = measured(compared_with, settings.rounds, "bench_push")
    figures = [*beside_c(quick), *beside_tools(slow), at_a_push(emulated), *conditions(quick)]
    return {**slow, **quick}, figures


def why(*rows: Row) -> str:
    """Why there is no figure."""
    return "; ".join(f"{row.peer.title}: {row.missing or row.invalid}" for row in rows if not row.spans)


def compared(rows: Rows, above: str, below: str, *, name: str, title: str, demand: Demand | None = None) -> Figure:
    """One row's cost as a multiple of another's."""
    return of_ratio(name, title, ratio(rows[above], rows[below]), demand, why=why(rows[above], rows[below]))


def beside_c(rows: Rows) -> list[Figure]:
    """What ubpx costs, beside what cannot be had for less."""
    counting = "Python handler that counts"
    return [
        compared(
            rows,
            COUNTING,
            YARDSTICK,
            name="python_handler_over_c_one_stop",
            title=f"{counting} / tracer in C, one stop",
            demand=Demand(most=1.8, aim=1.4),
        ),
        compared(
            rows,
            COUNTING,
            "c_stub",
            name="python_handler_over_c_stub",
            title=f"{counting} / tracer in C, jump to a stub",
        ),
        compared(
            rows,
            "ubpx_registers",
            YARDSTICK,
            name="two_registers_over_c_one_stop",
            title="Python handler that reads two registers / tracer in C, one stop",
            demand=Demand(most=2.0),
        ),
    ]


def beside_tools(rows: Rows) -> list[Figure]:
    """What one would use instead, beside ubpx."""
    figures = []
    for name, least in FASTER.items():
        title = f"{rows[name].peer.title} / ubpx"
        figures.append(
            compared(rows, name, COUNTING, name=f"{name}_over_ubpx", title=title, demand=Demand(least=least))
        )
    return figures


def at_a_push(rows: Rows) -> Figure:
    """At another instruction, which is emulated or jumped over, as the strategies go."""
    title = "the same at a push, which many functions begin with"
    return compared(rows, COUNTING, YARDSTICK, name="push_python_handler_over_c_one_stop", title=title)


def conditions(rows: Rows) -> list[Figure]:
    """What more clients, a busy host and a broker cost."""
    figures = [
        compared(
            rows,
            "clients_2",
            "clients_1",
            name="two_clients_over_one",
            title="two clients at one address / one",
            demand=Demand(most=1.1),
        ),
        thousandth(rows),
        compared(
            rows,
            "busy",
            "clients_1",
            name="busy_over_idle",
            title="a hit, the host computing in Python / idle",
            demand=Demand(most=10),
        ),
    ]
    for name, demand in REMOTE.items():
        title = f"{rows[name].peer.title} / in process"
        figures.append(compared(rows, name, COUNTING, name=f"{name}_over_in_process", title=title, demand=demand))
    return figures


def thousandth(rows: Rows) -> Figure:
    """What one more client adds at a thousand, as a multiple of a bare Python call: the slope from 100 on."""
    few, many = (rows[f"clients_{number}"] for number in CLIENTS)
    name, title, demand = "thousandth_client_over_call", "the 1,000th client adds, in bare Python calls", Demand(most=8)
    pairs = list(zip(many.runs, few.spans, strict=False)) if many.spans and few.spans else []
    if not pairs:
        return Figure(name=name, title=title, value=None, demand=demand, missing=why(few, many))
    added = [(above.nanoseconds - below * 1000) / (CLIENTS[1] - CLIENTS[0]) for above, below in pairs]
    calls = sorted(span / run.notes["bare_call_ns"] for span, (run, _) in zip(added, pairs, strict=True))
    found = Ratio(calls[len(calls) // 2], calls[0], calls[-1])
    figure = of_ratio(name, title, found, demand)
    details = {"added_ns": sorted(added)[len(added) // 2], "bare_call_ns": many.note("bare_call_ns")}
    return Figure(**{**vars(figure), "details": details})
