"""For tests of ubpx and of packages that extend it: a tracer without processes.

``FakeTracer`` drives the core by script, ``SeededTracer`` by whatever a seed picks; ``FakeMemory`` is a
memory without a process;
``check_tracer`` checks that a tracer, fake or real, does what the core relies on. Nothing here
needs a test framework.
"""

from ubpx.testing.checks import CHECKS
from ubpx.testing.conformance import check_tracer
from ubpx.testing.fake import FakeTracer
from ubpx.testing.memory import FakeMemory
from ubpx.testing.scenario import ConformingProgram, Scenario
from ubpx.testing.script import FakeProcess, FakeThread
from ubpx.testing.simulation.seeded import SeededTracer

__all__ = [
    "CHECKS", "ConformingProgram", "FakeMemory", "FakeProcess", "FakeThread", "FakeTracer", "Scenario", "SeededTracer",
    "check_tracer",
]  # fmt: skip
