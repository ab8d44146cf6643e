"""One conformance kit for every Tracer: what keeps the fake one honest, and checks a new one.

``check_tracer(scenario)`` runs every check of CHECKS, each on a program of its own. It needs no
test framework: a check that fails raises AssertionError.
"""

import threading

from ubpx.testing.checks import CHECKS, ENDING, Check, Traced, require
from ubpx.testing.scenario import ConformingProgram, Scenario


def check_tracer(scenario: Scenario, *names: str) -> None:
    """Run these checks, or all, on what the scenario starts; AssertionError says which rule does not hold.

    Each runs in a new thread, which is the tracer's from ``open`` to ``close``, and must leave the
    program untouched.
    """
    for name in names or CHECKS:
        with scenario.start() as program:
            _run(CHECKS[name], program)


def _run(check: Check, program: ConformingProgram) -> None:
    failures: list[BaseException] = []

    def body() -> None:
        try:
            _checked(check, program)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            error.add_note(f"The rule: {check.__doc__}")
            failures.append(error)

    thread = threading.Thread(target=body, name="tracer-check")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _checked(check: Check, program: ConformingProgram) -> None:
    program.tracer.open()
    try:
        traced = Traced(program)
        check(traced)
        if check not in ENDING:
            traced.stop()
            program.tracer.detach(traced.thread)
            program.tracer.forget(traced.thread)
            require(program.is_untouched(), "something is left behind")
    finally:
        program.tracer.close()
