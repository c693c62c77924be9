"""SQL over stored points, with DuckDB: the rows stay on the disk.

The table is called `points`: the parts that count, each point once. DuckDB sees these files and
nothing else: no other file, no network, no extension, no Python object, and its settings are
locked before the query is read. One SELECT is allowed; results are never changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opbyte.core.errors import ConfigError
from opbyte.sweeps import parts

if TYPE_CHECKING:
    from opbyte.sweeps.results import Results

__all__ = ["batches", "queried"]

#: Rows that are handed over at once.
_BATCH = 65_536
#: Seconds between two requests to stop.
_AGAIN_S = 0.05

Answer = TypeVar("Answer")


def queried(results: Results, sql: str, memory: float | None = None) -> Any:
    """Return what a query finds, as an Arrow table; see `Results.query`."""
    import pyarrow as pa

    found = list(batches(results, sql, memory))
    return pa.Table.from_batches(found[1:], schema=found[0])


def batches(results: Results, sql: str, memory: float | None = None) -> Generator[Any]:
    """Yield the Arrow schema of what a query finds, then record batches of it.

    Args:
        results: A folder of results.
        sql: One SELECT over `points`.
        memory: Bytes that DuckDB may take; more is done in a temporary folder.

    Raises:
        ConfigError: If DuckDB is missing or refuses the query, or it is no SELECT.
    """
    duckdb = _duckdb()
    statement = _checked(duckdb, sql)
    with tempfile.TemporaryDirectory(prefix="opbyte-query-") as spill:
        connection, reader = parts.steadily(
            results.folder,
            lambda files: _opened(duckdb, files, statement, _limits(memory, spill)),
        )
        try:
            schema = _plain(reader.schema)
            yield schema
            while (batch := _heard(connection, lambda: next(reader, None))) is not None:
                yield batch.cast(schema)
        except (duckdb.Error, OSError) as error:
            raise _refused(error, results.names) from None
        finally:
            connection.close()


def _plain(schema: Any) -> Any:
    """Return a schema with float64 for decimals, such as DuckDB's sums of whole numbers."""
    import pyarrow as pa

    decimal = pa.types.is_decimal
    fields = [f.with_type(pa.float64()) if decimal(f.type) else f for f in schema]
    return pa.schema(fields)


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        remedy = 'Install it with `pip install "opbyte[query]"`.'
        raise ConfigError.one("", "query", "duckdb is not installed", "", remedy) from None
    return duckdb


def _checked(duckdb: Any, sql: str) -> str:
    """Return a query that is one SELECT.

    Raises:
        ConfigError: If it is not.
    """
    rule = "a query is one SELECT over the table points"
    remedy = "Write for example: select status, count(*) from points group by status"
    try:
        found = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _refused(error, []) from None
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(found) != 1 or found[0].type not in allowed:
        raise ConfigError.one("", "query", rule, sql, remedy)
    query: str = found[0].query
    return query


def _limits(memory: float | None, spill: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "temp_directory": spill,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    if memory is not None:
        config["memory_limit"] = f"{int(memory)}B"
    return config


def _opened(
    duckdb: Any, files: Sequence[Path], statement: str, config: dict[str, Any]
) -> tuple[Any, Any]:
    """Return a connection and the reader of a query's batches."""
    _, _, doubled = parts.places(parts.live(files))
    try:
        connection = duckdb.connect(":memory:", config=config)
    except duckdb.Error as error:
        text = " ".join(str(error).split())
        remedy = "Write for example 2 GiB."
        raise ConfigError.one("", "memory", f"DuckDB refuses it: {text}", "", remedy) from None
    try:
        names = ", ".join(_quoted(str(file)) for file in files)
        connection.execute(f"SET allowed_paths = [{names}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        connection.execute(f"CREATE VIEW points AS {_view(files, names, doubled.tolist())}")
        made = _heard(connection, lambda: connection.sql(statement).to_arrow_reader(_BATCH))
        return connection, made
    except KeyboardInterrupt:
        connection.close()
        raise
    except (duckdb.Error, OSError) as error:
        connection.close()
        if any(not file.exists() for file in files):
            raise parts.Vanished from None
        columns = parts.metadata(files[0]).schema.names if files else []
        raise _refused(error, columns) from None


def _heard(connection: Any, work: Callable[[], Answer]) -> Answer:
    """Return what `work` gives. DuckDB hears no Ctrl-C while it works, so a thread waits for it."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(work)
        try:
            return asked.result()
        except KeyboardInterrupt:
            while not asked.done():
                connection.interrupt()
                wait([asked], timeout=_AGAIN_S)
            raise


def _view(files: Sequence[Path], names: str, doubled: Sequence[int]) -> str:
    """Return the SELECT behind `points`: of a point that stands in several parts, one row."""
    if not files:
        return "SELECT CAST(NULL AS BIGINT) AS point WHERE false"
    read = f"read_parquet([{names}], union_by_name = true)"
    rows = f"SELECT * FROM {read}"
    if not doubled:
        return rows
    ids = ", ".join(map(str, doubled))
    return (
        f"{rows} WHERE point NOT IN ({ids}) UNION ALL BY NAME "
        f"SELECT DISTINCT ON (point) * FROM {read} WHERE point IN ({ids})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refused(error: Exception, columns: Sequence[str]) -> ConfigError:
    """Return DuckDB's refusal as an error of ours, with what to do about it."""
    text = " ".join(str(error).split("\n\nLINE")[0].split())
    dotted = next((name for name in columns if "." in name), None)
    remedy = ""
    if dotted is not None and "not found" in text:
        remedy = f'Names with dots stand in double quotes, such as "{dotted}".'
    return ConfigError.one("", "query", f"DuckDB refuses it: {text}", "", remedy)
