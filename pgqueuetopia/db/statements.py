"""Every statement on our own tables, by the name of its file in sql/."""

from importlib.resources import files

SQL: dict[str, str] = {
    path.name.removesuffix(".sql"): path.read_text(encoding="utf-8")
    for path in (files("pgqueuetopia.db") / "sql").iterdir()
    if path.name.endswith(".sql")
}
