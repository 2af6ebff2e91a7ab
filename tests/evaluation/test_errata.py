"""The article's mistakes: every entry whole, every check run."""

import pytest

from course.evaluation import errata


def test_entries_are_whole():
    found = errata.entries()
    assert len(found) >= 30 and len({e.id for e in found}) == len(found)
    assert all(e.section and e.says and e.is_ and e.source and e.says != e.is_ for e in found)
    assert {e.check for e in found if e.check} == set(errata.CHECKS)


@pytest.mark.parametrize("erratum", [e for e in errata.entries() if e.check], ids=lambda e: e.id)
def test_what_is_said_to_be_true_can_be_seen(erratum):
    assert erratum.holds() is True


def test_a_check_notices_another_table(monkeypatch):
    tables = errata.published()
    altered = {**tables, "tables": {**tables["tables"], "first_stage_days": {"rows": [{"model": "VQ, f = 4", "v100_days": 290}]}}}
    monkeypatch.setattr(errata, "published", lambda: altered)
    assert not errata.cost_of_training()
    with pytest.raises(KeyError, match="0 rows of first_stage_days"):
        errata.row("first_stage_days", model="VQ, f = 8")


def test_every_published_row_names_its_source():
    data = errata.published()
    for name, table in data["tables"].items():
        assert table["title"] and table["rows"], name
        for row in table["rows"]:
            assert row["source"].split(",")[0] in data["sources"], (name, row)
