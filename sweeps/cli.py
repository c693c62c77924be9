"""The command line. Everything heavy is imported by the command that needs it."""

import sys
from importlib import import_module
from typing import Annotated

import typer

import opbyte
from opbyte.core.errors import OpbyteError

__all__ = ["COMMANDS", "main"]

#: Commands by name; each is the function `command` of a module of `opbyte.sweeps.commands`, or its
#: `app` where the command has verbs of its own.
COMMANDS = {
    "run": "run",
    "sweep": "sweep",
    "search": "search",
    "cluster": "cluster",
    "watch": "watch",
    "query": "query",
    "compact": "compact",
    "front": "front",
    "report": "report",
    "compare": "compare",
    "list": "listing",
    "explain": "explain",
    "schema": "schema",
    "validate": "validate",
    "calibrate": "calibrate",
    "capacity": "capacity",
    "memory": "memory",
    "trace": "trace",
}
_HELP = "Simulate accelerators for large language models and search their design space."


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0 where all went well (points that do not fit are results), 1 where points failed, 2 for
        bad input, 130 after an interruption.
    """
    try:
        code = _app()(args=arguments, standalone_mode=False)
    except OpbyteError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except SystemExit as error:
        # How typer ends where nobody reads the answer any more, as in `opbyte list | head`.
        if isinstance(error.__context__, BrokenPipeError):
            return 0
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {place}{error.strerror or error}\n")
        return 2
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0


def _app() -> typer.Typer:
    app = typer.Typer(
        name="opbyte",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(_options)
    for name, module in COMMANDS.items():
        found = import_module(f"opbyte.sweeps.commands.{module}")
        if hasattr(found, "app"):
            app.add_typer(found.app, name=name)
        else:
            app.command(name)(found.command)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"opbyte {opbyte.__version__}\n")
        raise typer.Exit


if __name__ == "__main__":
    sys.exit(main())
