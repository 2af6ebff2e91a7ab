"""The comparison tables of the papers and of the article, regenerated: `course tables NAME|all --scale quick|cpu|gpu`.

One file a table, each with its claim, what would falsify it, and the rule of its verdict. Some train models of their own, `arms`.
"""

from course.errors import UsageError
from course.evaluation.tables import (
    ablations,
    adapters,
    audit,
    classes,
    compression,
    guidance,
    reach,
    resolution,
    steps,
    zoo,
)
from course.evaluation.tables.table import Table

TABLES: dict[str, Table] = {module.TABLE.name: module.TABLE for module in (zoo, compression, steps, resolution, classes, guidance,
                                                                  ablations, adapters, audit, reach)}


def chosen(names: str) -> list[Table]:
    """"all", or names with commas between. Raises UsageError."""
    if names.lower() == "all":
        return list(TABLES.values())
    wanted = [name.strip().upper() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in TABLES]:
        raise UsageError(f"no table {', '.join(unknown)}; expected all, or some of {', '.join(TABLES)}")
    return [TABLES[name] for name in wanted]
