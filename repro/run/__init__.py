"""How a plan is carried out: unit by unit, here or on other machines; `repro.run(subject, name)` asks for it."""

from repro.packages import make_callable

make_callable(__name__, "repro.notebook", "run_named")
