"""For tests of ubpx and of packages that extend it: a tracer without processes.

``FakeTracer`` drives the core by script; ``FakeMemory`` is a memory without a process.
Nothing here needs a test framework.
"""

from ubpx.testing.fake import FakeTracer
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import FakeProcess, FakeThread

__all__ = ["FakeMemory", "FakeProcess", "FakeThread", "FakeTracer"]
