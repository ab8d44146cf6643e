"""``ubpx doctor``: asks the tracer what it would say, and adds what ubpx itself knows of the machine."""

import json
import platform
from collections.abc import Sequence
from typing import Final

import attrs

from ubpx._errors import NoTracer, UbpxError
from ubpx.cli.text import printable
from ubpx.core.plugins import Plugins
from ubpx.core.ubp.decode import default_decoder
from ubpx.core.values import Diagnosis, Finding, ProcessId, Severity
from ubpx.posting import PLACEMENT_VARIABLE, URGENCY_VARIABLE, chosen_placement, chosen_urgency

_MARKS: Final = {Severity.FINE: "ok", Severity.WARNING: "warning", Severity.REFUSAL: "no"}


def diagnose(pid: int | None) -> Diagnosis:
    """Of the process or, without one, of this machine. Raises NoTracer for a process that nobody could trace."""
    plugins = Plugins()
    found: Diagnosis | None = plugins.ask("ubpx_diagnose", pid=None if pid is None else ProcessId(pid))
    if pid is not None:
        if found is None:
            raise NoTracer
        path: str | None = plugins.ask("ubpx_find_broker", pid=ProcessId(pid))
        if path is None:
            return found
        known: Sequence[Finding] = plugins.ask("ubpx_diagnose_traced", pid=ProcessId(pid)) or ()
        found = by_broker(found, pid, path)
        return attrs.evolve(found, findings=(*found.findings, *known))
    if found is None:
        found = Diagnosis(subject="any process", findings=(refusal(NoTracer()),))
    return attrs.evolve(found, findings=(python(), decoder(), *found.findings, post()))


def by_broker(diagnosis: Diagnosis, pid: int, path: str) -> Diagnosis:
    """A broker traces the process: whatever speaks against attaching, it can be joined."""
    remedy = f"join its broker ({path}) with ubpx.connect({pid}), or ubpx trace --join -p {pid}"
    findings = (
        attrs.evolve(each, remedy=remedy) if each.severity is Severity.REFUSAL else each for each in diagnosis.findings
    )
    return attrs.evolve(diagnosis, findings=tuple(findings))


def refusal(error: UbpxError) -> Finding:
    """The error as a finding: its message ends with what to do."""
    what, _, remedy = str(error).rpartition("; ")
    return Finding(severity=Severity.REFUSAL, what=what, remedy=remedy)


def python() -> Finding:
    """Which Python runs us."""
    return Finding(
        severity=Severity.FINE, what=f"{platform.python_implementation()} {platform.python_version()}", remedy=""
    )


def decoder() -> Finding:
    """Which disassembler tells where instructions end."""
    try:
        name = type(default_decoder()).__name__.removesuffix("Decoder").lower()
    except UbpxError as error:
        return refusal(error)
    return Finding(severity=Severity.FINE, what=f"instructions are decoded by {name}", remedy="")


def post() -> Finding:
    """How tracer threads are asked to run, unless their session says otherwise."""
    try:
        urgency, placement = chosen_urgency(), chosen_placement()
    except UbpxError as error:
        return refusal(error)
    what = (
        f"tracer threads are asked to run with urgency {str(urgency)!r} ({URGENCY_VARIABLE}) "
        f"and placement {str(placement)!r} ({PLACEMENT_VARIABLE})"
    )
    return Finding(severity=Severity.FINE, what=what, remedy="")


def as_json_text(diagnosis: Diagnosis) -> str:
    """One JSON object."""
    return json.dumps(
        {
            "subject": diagnosis.subject,
            "attachable": diagnosis.attachable,
            "findings": [attrs.asdict(finding) for finding in diagnosis.findings],
        }
    )


def as_text(diagnosis: Diagnosis) -> str:
    """The answer, then what it rests on, a line for each finding and one for each remedy."""
    answer = "can attach to" if diagnosis.attachable else "cannot attach to"
    told = [f"{answer} {printable(diagnosis.subject)}"]
    for finding in diagnosis.findings:
        told.append(f"  {_MARKS[finding.severity]}: {printable(finding.what)}")
        if finding.remedy:
            told.append(f"    what to do: {printable(finding.remedy)}")
    return "\n".join(told)
