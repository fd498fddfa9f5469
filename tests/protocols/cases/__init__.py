"""Small programs that every protocol must run like `clear`: each operation alone, and the ways operations meet.

Found by scanning this folder.
"""

import re

from blindformer.protocols.scanning import import_all

from ..programs import CASES

__all__ = ["CASES", "FEW", "ONE_EACH"]

import_all(__name__)
# Without most widths of a comparison, for what need not be tried at each.
FEW = [name for name in CASES if not re.fullmatch(r"less-\d+", name) or name in ("less-5", "less-24", "less-49")]
# One of each kind, for what does not depend on sizes: where a value lies, or what computes it.
ONE_EACH = list({re.split(r"-[\d(]", name)[0]: name for name in reversed(CASES)}.values())
