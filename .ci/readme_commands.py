"""Prints the README's commands that need no data of the reader's own: the blocks fenced as ```sh after <!-- run -->."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text()
blocks = re.findall(r"<!-- run -->\n```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
if not blocks:
    sys.exit("no <!-- run --> blocks found")
for kind, block in blocks:
    sys.stdout.write(block if kind == "sh" else f"python - <<'END'\n{block}END\n")
