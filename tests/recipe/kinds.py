"""The recipes whose formula is one of `test_forward`: those whose module has no test file of its own beside it.

`InputInjection` needs a loop, and `tests/test_recurrence.py` holds its formula.
"""

from pathlib import Path

from stackjax import recipe

BESIDE = Path(__file__).parent

KINDS = {
    name: kind
    for name, kind in vars(recipe).items()
    if isinstance(kind, type)
    and issubclass(kind, recipe.Recipe)
    and kind not in (recipe.Recipe, recipe.Around, recipe.InputInjection)
    and not (BESIDE / f"test_{kind.__module__.rpartition('.')[2]}.py").exists()
}
