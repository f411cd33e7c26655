"""Counts code lines, tokens a line, and the share of ceremony in the models and layers of heads/.

    python -m tests.benchmarks.ceremony

Code lines are those that hold more than a comment or a docstring. Ceremony is what a class or module needs
beside its algorithm: imports, constants, constructors, `build`, configurations, shapes, reference names and
checks. Models and layers are the modules with a class that derives from a Keras layer or model.
"""

import ast
import io
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("van_backbones", "heads")
# What Keras asks of a layer or a model, and what loads checkpoints.
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
    """Returns the numbers of a file's code lines, and how many tokens they hold."""
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
    """Returns the numbers of the lines that are ceremony."""
    found = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef)
        is_named = is_function and (node.name in CEREMONIES or node.name.startswith(CHECKS))
        is_check = isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body)
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        is_check |= is_call and ast.unparse(node.value.func).startswith(CHECKS)
        if is_named or is_check or isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
            found.update(range(node.lineno, node.end_lineno + 1))
        for decorator in getattr(node, "decorator_list", ()):
            found.update(range(decorator.lineno, decorator.end_lineno + 1))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found.update(range(node.lineno, node.end_lineno + 1))
    return found


def main():
    total_lines = total_tokens = 0
    for package in PACKAGES:
        counts = [read_code(path) for path in sorted((ROOT / package).rglob("*.py"))]
        lines, tokens = sum(len(lines) for lines, _ in counts), sum(tokens for _, tokens in counts)
        print(f"{package}: {lines:,} code lines, {tokens / lines:.1f} tokens a line")
        total_lines, total_tokens = total_lines + lines, total_tokens + tokens
    print(f"together: {total_lines:,} code lines, {total_tokens / total_lines:.1f} tokens a line")

    paths = [*(ROOT / "heads").glob("*.py"), *(ROOT / "heads" / "layers").glob("*.py")]
    sums = [0, 0]
    for path in sorted(paths):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bases = [base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
        if not any(ast.unparse(base).endswith(("Layer", "Model", "Chain", "FasterRCNN")) for base in bases):
            continue
        lines, _ = read_code(path)
        ceremony = lines & find_ceremony(tree)
        sums = [sums[0] + len(lines), sums[1] + len(ceremony)]
        print(f"  {path.relative_to(ROOT)}: {len(ceremony)} of {len(lines)} lines")
    print(f"ceremony in the models and layers of heads/: {sums[1] / sums[0]:.0%} of {sums[0]:,} lines")


if __name__ == "__main__":
    main()
