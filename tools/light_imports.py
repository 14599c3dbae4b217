"""A plugin that pytest loads before all others (`-p tools.light_imports`): it saves each process a
second.

nbformat imports jsonschema, and this one a grammar of IRIs, which is compiled at each start. What
notebooks hold is checked without it.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # whoever imports it is told that it is missing
