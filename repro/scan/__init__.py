"""The question, answered: which components take back what others wrote; `repro.scan(model)` asks it."""

from repro.packages import make_callable

make_callable(__name__, "repro.scan.in_memory", "scan")
