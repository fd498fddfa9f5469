"""Small programs that every protocol must run like `clear`: each operation alone, and the ways operations meet.

Found by scanning this folder.
"""

from blindformer.protocols.scanning import import_all

from ..programs import CASES

__all__ = ["CASES"]

import_all(__name__)
