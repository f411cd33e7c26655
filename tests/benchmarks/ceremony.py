"""Counts code lines, tokens per line, and the share of ceremony in the models, layers and ops of heads/.

    python -m tests.benchmarks.ceremony

Code lines are those that hold more than a comment or a docstring. Ceremony is what a class or module needs
besides its algorithm: imports, constants, constructors, `build`, configurations, shapes, reference names and
checks. When all of heads/ was in one folder, with three detectors, the share was 42.6 %.
"""

import ast
import collections
import io
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("van_backbones", "heads")
ROOMS = ("heads", "heads/layers", "heads/ops")
# What Keras requires of a layer or a model, and what loads checkpoints.
CEREMONIES = {
    *("__init__", "__new__", "build", "build_from_config", "get_config", "from_config"),
    *("compute_output_shape", "compute_output_spec", "reference_layers"),
}
CHECKS = ("check_", "_check", "_refuse")
IGNORED = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def read_code(path):
    """Returns the line numbers of a file's code, and how many tokens it has."""
    source = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines, num_tokens = set(), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED and token.start[0] not in docstrings:
            lines.update(range(token.start[0], token.end[0] + 1))
            num_tokens += 1
    return lines, num_tokens


def find_ceremony(tree):
    """Returns line number -> kind of ceremony, for the lines that are ceremony."""
    found = {}

    def mark(kind, *nodes):
        for node in nodes:
            found.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), kind))

    mark("constants", *(node for node in tree.body if isinstance(node, ast.Assign)))
    for node in ast.walk(tree):
        mark("decorators", *getattr(node, "decorator_list", ()))
        if isinstance(node, ast.Import | ast.ImportFrom):
            mark("imports", node)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            mark("constructors", *node.body)
            found.update(dict.fromkeys(range(node.lineno, node.body[0].lineno), "signatures of constructors"))
        elif isinstance(node, ast.FunctionDef) and node.name in CEREMONIES:
            mark(f"`{node.name}`", node)
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef) and node.name.startswith(CHECKS)
        is_raise = isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body)
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        is_call = is_call and ast.unparse(node.value.func).startswith(CHECKS)
        if is_function or is_raise or is_call or isinstance(node, ast.Raise):
            mark("checks", node)
    return found


def main():
    total_lines = total_tokens = 0
    for package in PACKAGES:
        counts = [read_code(path) for path in sorted((ROOT / package).rglob("*.py"))]
        lines, tokens = sum(len(lines) for lines, _ in counts), sum(tokens for _, tokens in counts)
        print(f"{package}: {lines:,} code lines, {tokens / lines:.1f} tokens a line")
        total_lines, total_tokens = total_lines + lines, total_tokens + tokens
    print(f"together: {total_lines:,} code lines, {total_tokens / total_lines:.1f} tokens a line")

    kinds, num_lines = collections.Counter(), 0
    for folder in ROOMS:
        for path in sorted((ROOT / folder).glob("*.py")):
            found = find_ceremony(ast.parse(path.read_text(encoding="utf-8")))
            lines, _ = read_code(path)
            kinds.update(found[line] for line in lines & found.keys())
            num_lines += len(lines)
    print(f"ceremony in {', '.join(ROOMS)}: {kinds.total() / num_lines:.1%} of {num_lines:,} lines")
    for kind, count in kinds.most_common():
        print(f"  {kind}: {count / num_lines:.1%}")


if __name__ == "__main__":
    main()
