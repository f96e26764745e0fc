"""Write the tables of components into README.md from the registries and their documentation.

python scripts/method_table.py            rewrite README.md
python scripts/method_table.py --check    exit code 1 when README.md is stale
"""

import sys
from pathlib import Path

from tables import between

from vlalign.cli.methods import first_line
from vlalign.registry import REGISTRIES

BEGIN, END = "<!-- methods: written by scripts/method_table.py -->", "<!-- end of methods -->"
README = Path(__file__).parents[1] / "README.md"


def table() -> str:
    """One Markdown table: kind, name, first line of the module's documentation."""
    lines = ["| kind | name | what it is |", "|---|---|---|"]
    for registry in REGISTRIES.values():
        for name in registry.names():
            told = first_line(registry.get(name)).replace("|", "\\|")
            lines.append(f"| {registry.kind} | `{name}` | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite or check."""
    text = README.read_text(encoding="utf-8")
    new = between(text, BEGIN, END, table())
    if "--check" in sys.argv[1:]:
        if new != text:
            sys.exit("README.md: the table of methods is stale; run 'python scripts/method_table.py'")
    else:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
