"""Makes the notebooks from the scripts beside them: `make notebooks`.

Edit the scripts, not the notebooks. They are in jupytext's percent format, where `# %%` starts a cell.
"""

import argparse
import pathlib

import jupytext
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent / "notebooks"


def convert(script) -> str:
    """Returns the text of a script's notebook, without outputs, the same each time."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)  # names the script's format
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"  # jupytext's are random
    return nbformat.writes(notebook) + "\n"


def find_scripts() -> list[pathlib.Path]:
    """Returns the paths of the scripts."""
    return sorted(FOLDER.glob("*.py"))


def main(argv=None):
    """Writes the notebooks."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    for script in find_scripts():
        path = script.with_suffix(".ipynb")
        path.write_text(convert(script), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
