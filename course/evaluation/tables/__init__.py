"""The comparison tables of the papers and of the article, regenerated: `course tables NAME|all --scale quick|cpu|gpu`.

One file a table, each with its claim, what would falsify it, and the rule of its verdict. C, D, F, I and J so far.
"""

from course.errors import UsageError
from course.evaluation.tables import audit, guidance, reach, resolution, steps
from course.evaluation.tables.table import Table

TABLES: dict[str, Table] = {module.TABLE.name: module.TABLE for module in (steps, resolution, guidance, audit, reach)}


def chosen(names: str) -> list[Table]:
    """"all", or names with commas between. Raises UsageError."""
    if names.lower() == "all":
        return list(TABLES.values())
    wanted = [name.strip().upper() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in TABLES]:
        raise UsageError(f"no table {', '.join(unknown)}; expected all, or some of {', '.join(TABLES)}")
    return [TABLES[name] for name in wanted]
