"""How bench treats its peers, with peers made for the purpose and one that is real."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from harness.peers import Missing, Peer, Run, all_peers, read_peer, run_peer
from harness.programs import BenchError, MeasuredProgram, Talk, build
from harness.rounds import rounds

PEERS = {peer.name: replace(peer, warm_up_s=0.0) for peer in all_peers()}
CALLS = 100
MADE = CALLS + CALLS // 4
"""With the warm-up."""


def make(directory: Path, name: str, body: str, heads: str = "") -> Peer:
    """A peer whose ``serve`` has this body."""
    script = directory / f"{name}.py"
    text = f"""
        from interface import Missing, main, wait_for_end

        TITLE = "the {name}"
        CALLS = {CALLS}
        {heads}

        def serve(place, armed):
            {body}

        if __name__ == "__main__":
            main(serve)
    """
    script.write_text(textwrap.dedent(text))
    return read_peer(script)


@pytest.mark.parametrize(
    "name", ["c_one_stop", "c_two_stops", "c_stub", "ctypes_tracer", "ubpx_counts", "ubpx_registers"]
)
@pytest.mark.parametrize("function", ["bench_lea", "bench_push"])
def test_a_peer_counts_each_call_and_leaves_the_program_unharmed(name: str, function: str) -> None:
    """Invariant: run_peer gives a figure only where hits equal calls and the program runs on as before."""
    run = run_peer(PEERS[name], calls=CALLS, function=function)
    assert (run.calls, run.hits, run.counted_by) == (MADE, MADE, "peer")
    assert run.nanoseconds > 0


def test_hits_that_are_not_the_calls_are_an_error(tmp_path: Path) -> None:
    """Invariant: there is no figure, the error has both counts, and the others are measured all the same."""
    liar = make(tmp_path, "liar", f"armed(); wait_for_end(); return {MADE - 1}")
    with pytest.raises(BenchError, match=rf"the liar: {MADE - 1} hits, {MADE} calls"):
        run_peer(liar, calls=CALLS)
    rows = rounds([liar, PEERS["c_one_stop"]], 2, scale=CALLS / PEERS["c_one_stop"].calls, telling=lambda _: None)
    assert rows["liar"].median is None
    assert "hits" in rows["liar"].invalid
    assert rows["liar"].missing == ""
    assert len(rows["c_one_stop"].spans) == 2


def test_a_missing_peer_is_a_row_without_a_number(tmp_path: Path) -> None:
    """Invariant: it has the reason, is no error, and is not tried again."""
    tries = tmp_path / "tries"
    body = f"open({str(tries)!r}, 'a').write('x'); raise Missing('it is not sold here')"
    rows = rounds([make(tmp_path, "absent", body)], 3, telling=lambda _: None)
    assert (rows["absent"].median, rows["absent"].missing) == (None, "it is not sold here")
    assert rows["absent"].invalid == ""
    assert tries.read_text() == "x"


def test_a_peer_that_cannot_start_is_missing_with_what_it_said(tmp_path: Path) -> None:
    broken = make(tmp_path, "broken", "raise OSError('no such device')")
    with pytest.raises(Missing, match=r"broken.py ended with status 1: OSError: no such device"):
        run_peer(broken, calls=CALLS)
    alien = make(tmp_path, "alien", "print('hello'); wait_for_end()")
    with pytest.raises(Missing, match="it said 'hello'"):
        run_peer(alien, calls=CALLS)


def test_a_peer_whose_package_is_not_installed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.peers.OWN_PYTHON", tmp_path / "nowhere" / "python")
    wanting = make(tmp_path, "wanting", "armed()", heads="PACKAGES = ('frida', 'more')")
    with pytest.raises(Missing, match="frida and more could not be installed"):
        run_peer(wanting, calls=CALLS)


def test_a_peer_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    """Invariant: once it was there it owes a count; neither a crash nor silence passes for one that is missing."""
    crashing = make(tmp_path, "crashing", "armed(); raise OSError('lost it')")
    with pytest.raises(BenchError, match="lost it"):
        run_peer(crashing, calls=CALLS)
    uncounting = make(tmp_path, "uncounting", "armed(); wait_for_end(); return None")
    with pytest.raises(BenchError, match="None hits"):
        run_peer(uncounting, calls=CALLS)


def test_a_peer_that_kills_the_program_harms_nobody_else(tmp_path: Path) -> None:
    body = "import os; armed(); wait_for_end(); os.kill(place.pid, 9); return 0"
    killer = make(tmp_path, "killer", body)
    with pytest.raises(BenchError):
        run_peer(killer, calls=CALLS)
    assert run_peer(PEERS["c_one_stop"], calls=CALLS).hits == MADE


@pytest.mark.parametrize(("way", "stops"), [("slot", 1), ("step", 2)])
def test_the_kernel_counts_where_a_peer_cannot(tmp_path: Path, way: str, stops: int) -> None:
    """Invariant: the stops that the kernel saw are the calls, by how many stops a hit is."""
    body = f"import os; from interface import run; run([os.environ['BENCH_TRACER'], '{way}', *place.words()], armed)"
    run = run_peer(make(tmp_path, "dumb", body, heads=f"STOPS = {stops}"), calls=CALLS)
    assert (run.calls, run.hits, run.counted_by) == (MADE, MADE, "kernel")
    wrong = make(tmp_path, "wrong", body, heads=f"STOPS = {stops + 1}")
    with pytest.raises(BenchError, match=f"{MADE} calls"):
        run_peer(wrong, calls=CALLS)


def test_what_a_peer_measures_beside_is_kept(tmp_path: Path) -> None:
    body = f"armed(); wait_for_end(); return {{'hits': {MADE}, 'bare_call_ns': 41.5}}"
    run: Run = run_peer(make(tmp_path, "noting", body), calls=CALLS)
    assert run.notes == {"bare_call_ns": 41.5}


def test_a_warm_up_may_last_some_time_and_its_hits_count() -> None:
    """Invariant: what is asked to be hot for a while is; its calls and hits are compared like all others."""
    run = run_peer(replace(PEERS["c_one_stop"], warm_up_s=0.2), calls=CALLS)
    assert run.calls == run.hits > 2 * MADE
    assert [peer.name for peer in all_peers() if peer.warm_up_s] == ["ubpx_counts", "ubpx_registers"]


def test_talk_is_bounded_and_leaves_nothing_behind() -> None:
    """Invariant: whoever says nothing is given up, and ends with the ``with``."""
    with Talk(["sleep", "60"]) as sleeper:
        with pytest.raises(BenchError, match="said nothing"):
            sleeper.hear(patience_s=0.05)
        pid = sleeper.pid
    assert not Path(f"/proc/{pid}").exists()
    with Talk(["sh", "-c", "echo one; echo two >&2; exit 3"]) as talker:
        assert talker.hear() == "one"
        with pytest.raises(BenchError, match="sh ended with status 3: two"):
            talker.hear()


def test_the_program_of_many_functions_calls_its_quiet_ones() -> None:
    with MeasuredProgram(build("many", "-DFUNCTIONS=50")) as program:
        assert program.run("quiet", 200).nanoseconds > 0
        assert program.run("bench_lea", 10).stops == 0
        program.end()
