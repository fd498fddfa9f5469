"""Small programs that every protocol must run like `clear`: each operation alone, and the ways operations meet.

Found by scanning this folder.
"""

import re

from blindformer.protocols.scanning import import_all

from ..programs import CASES

__all__ = ["CASES", "FEW"]

import_all(__name__)
# Without most widths of a comparison, for what need not be tried at each.
FEW = [name for name in CASES if not re.fullmatch(r"less-\d+", name) or name in ("less-5", "less-24", "less-49")]
